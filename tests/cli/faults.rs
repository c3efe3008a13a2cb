//! What the system does to a running program: a file that grows too large, a model's file that is cut off meanwhile.

use crate::common::{Workplace, model, send_signal, stderr, wait};
use assert_cmd::Command;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command as Process, Stdio};

#[test]
fn a_file_that_may_not_grow_is_an_error_and_no_signal() {
    let place = Workplace::new();
    // A file may have 8 blocks of 1024 bytes, and the rows need more.
    let script = format!(
        "ulimit -f 8; exec {:?} -m {:?} -p 'a red apple' --samples-per-prompt 400 --steps 2 --out e.npy",
        env!("CARGO_BIN_EXE_prior-embed"),
        model()
    );
    let output = Command::new("bash").current_dir(place.folder.path()).args(["-c", &script]).output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.lines().count() == 1 && message.contains("File too large"), "{message}");
    assert!(!place.names().contains(&"e.npy".to_string()));
}

/// Adds a tensor of so many bytes, all zero, to the end of a safetensors file.
fn add_tensor(path: &Path, bytes: u64) {
    let file = fs::read(path).unwrap();
    let header_len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let (header, data) = file[8..].split_at(header_len);
    let mut header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let start = data.len() as u64;
    header["zzz"] = serde_json::json!({"dtype": "U8", "shape": [bytes], "data_offsets": [start, start + bytes]});
    let header = header.to_string();
    let larger = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    fs::write(path, &larger).unwrap();
    OpenOptions::new().write(true).open(path).unwrap().set_len(larger.len() as u64 + bytes).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_model_file_that_is_cut_off_while_it_is_read_is_one_line() {
    let place = Workplace::new();
    let weights = place.copy_model().join("prior/diffusion_pytorch_model.safetensors");
    let sound = fs::read(&weights).unwrap();
    add_tensor(&weights, 512 << 20);
    let mut child = Process::new(env!("CARGO_BIN_EXE_prior-embed"))
        .args(["convert", "model", "out", "--dtype", "f16"])
        .current_dir(place.folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // As soon as it is mapped, and before its half a gigabyte is copied.
    let maps = format!("/proc/{}/maps", child.id());
    place.wait_until(|| fs::read_to_string(&maps).is_ok_and(|maps| maps.contains("diffusion_pytorch_model")));
    send_signal(&child, "STOP");
    assert!(child.try_wait().unwrap().is_none(), "it was too fast");
    OpenOptions::new().write(true).open(&weights).unwrap().set_len(sound.len() as u64 / 2).unwrap();
    send_signal(&child, "CONT");
    let output = wait(child);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    let told: Vec<&str> = message.lines().filter(|line| line.starts_with("prior-embed: error:")).collect();
    assert!(told.len() == 1 && ["cut off", "truncated"].iter().any(|word| told[0].contains(word)), "{message}");
    assert!(!place.names().contains(&"out".to_string()), "{:?}", place.names());
}

#[cfg(target_os = "linux")]
#[test]
fn a_bus_error_that_somebody_sends_is_a_signal() {
    use std::os::unix::process::ExitStatusExt;
    let place = Workplace::new();
    let options = ["-f", "-", "--out", "-", "--format", "jsonl"];
    let child = place.spawn(&options, Stdio::piped(), Stdio::null());
    let status = format!("/proc/{}/status", child.id());
    // Until the handler is there: bit 7 less one of the caught signals.
    place.wait_until(|| {
        let status = fs::read_to_string(&status).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_string();
        u64::from_str_radix(&caught, 16).unwrap() & 1 << 6 != 0
    });
    send_signal(&child, "BUS");
    assert_eq!(wait(child).status.signal(), Some(7));
}
