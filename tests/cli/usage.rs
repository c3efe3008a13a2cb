//! What a command line may look like, and what is said of one that is wrong or says nothing.

use crate::common::{Workplace, assert_done, assert_refused, model, read_npy, send_signal, stderr, wait};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command as Process, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_prior-embed");

#[test]
fn without_arguments_it_prints_help() {
    let output = Workplace::new().bare().output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    let text = stderr(&output);
    for word in ["Usage: prior-embed", "--prompt <TEXT>", "merge", "--out <FILE>"] {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn help_is_on_everything_a_command_or_a_topic() {
    let place = Workplace::new();
    let help = |arguments: &[&str]| {
        let output = place.bare().args(arguments).output().unwrap();
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(help(&["help"]), help(&["--help"]));
    assert_eq!(help(&["help", "merge"]), help(&["merge", "--help"]));
    assert!(help(&["-h"]).lines().count() < help(&["--help"]).lines().count());
    for (topic, words) in [
        ("resuming", ["--resume", "OUT.run.json"]),
        ("bad-rows", ["--on-error skip", "OUT.errors.jsonl"]),
        ("formats", ["negative_prompt", "img_emb_0000.npy"]),
        ("models", ["HF_HOME", "prior-embed models"]),
        ("seeds", ["manual_seed", "2^63"]),
    ] {
        let text = help(&["help", topic]);
        assert!(words.iter().all(|word| text.contains(word)), "{topic}: {text}");
        assert!(help(&["--help"]).contains(topic) && help(&["-h"]).contains(topic), "{topic}");
    }
    let topics = "topics are formats, resuming, bad-rows, models, seeds, schedulers";
    assert_refused(&place, place.bare().args(["help", "resume"]), 2, &["no help on \"resume\"", topics]);
}

#[test]
fn a_prompt_may_begin_with_a_dash() {
    let place = Workplace::new();
    let prompts = |options: &[&str]| -> Vec<String> {
        let output = place.command().args(options).args(["--out", "-", "--format", "jsonl"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["prompt"].as_str().unwrap().into())
            .collect()
    };
    assert_eq!(
        prompts(&["-p", "-5 degrees", "--prompt", "-blurry", "-p=--steps"]),
        ["-5 degrees", "-blurry", "--steps"]
    );
    let embed = |out: &str, options: &[&str]| {
        assert_done(place.command().args(["-p", "a cat", "--out", out]).args(options));
        read_npy(&fs::read(place.path(out)).unwrap())
    };
    assert_eq!(embed("a.npy", &["-n", "-blurry"]), embed("b.npy", &["--negative-prompt=-blurry"]));
    assert_ne!(embed("c.npy", &["-n", "-blurry"]), embed("d.npy", &[]));
}

#[test]
fn what_cannot_be_printed_is_an_error() {
    let place = Workplace::new();
    let commands = [
        "--help",
        "--version",
        "help",
        "help merge",
        "help formats",
        "merge --help",
        "models",
        "models --json",
        "info",
        "-p x --steps 2 --out -",
    ];
    for arguments in commands {
        for redirection in [">/dev/full", ">&-"] {
            let mut command = assert_cmd::Command::new("bash");
            let script = format!("exec {BINARY:?} -q {arguments} {redirection}");
            command.current_dir(place.folder.path()).args(["-c", &script]);
            let reason = if redirection == ">&-" { "closed" } else { "No space left on device" };
            assert_refused(&place, &mut command, 1, &["error: cannot write", "standard output", reason]);
        }
    }
}

#[test]
fn a_reader_that_goes_misses_nothing_it_wants() {
    for arguments in ["--help", "help formats", "models --json", "info --json"] {
        let script = format!("{BINARY:?} {arguments} | true; exit ${{PIPESTATUS[0]}}");
        let output = Process::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{arguments}");
    }
}

#[test]
fn signals_that_the_parent_ignores_stay_ignored() {
    let place = Workplace::new();
    let mut shell = Process::new("bash");
    shell.args(["-c", "trap '' HUP INT TERM; exec \"$@\"", "bash", BINARY, "--model"]).arg(model());
    shell.args(["--steps", "3", "-f", "-", "--out", "-", "--format", "jsonl"]).current_dir(place.folder.path());
    let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    for signal in ["HUP", "INT", "INT", "TERM", "TERM"] {
        writeln!(input, "a cat").unwrap();
        assert!(output.read_line(&mut String::new()).unwrap() > 0, "it ended before {signal}");
        send_signal(&child, signal);
    }
    writeln!(input, "two cats").unwrap();
    assert!(output.read_line(&mut String::new()).unwrap() > 0);
    drop(input);
    let ended = wait(child);
    assert_eq!((ended.status.code(), stderr(&ended).as_str()), (Some(0), ""));
}

#[test]
fn options_without_effect_say_so() {
    let place = Workplace::new();
    fs::write(place.path("p.txt"), "a cat\n").unwrap();
    let model = model();
    let model = model.to_str().unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (&["-p", "x", "--format-in", "csv"], &["--format-in", "--prompts"]),
        (&["-p", "x", "--prompt-column", "caption"], &["--prompt-column", "--prompts"]),
        (&["-p", "x", "--no-header"], &["--no-header", "--prompts"]),
        (&["-p", "x", "--row-noise"], &["--row-noise", "--prompts"]),
        (&["-p", "x", "--rows-per-file", "5"], &["--rows-per-file", "--out-dir"]),
        (&["-p", "x", "--cache-dir", "c"], &["--cache-dir", "not on the hub"]),
        (&["-p", "x", "--guidance-scale", "1", "-n", "y"], &["--negative-prompt", "--guidance-scale 1"]),
        (&["-f", "p.txt", "--guidance-scale", "-3", "-n", "y"], &["--negative-prompt", "--guidance-scale -3"]),
        (&["-p", "x", "--out", "-", "--overwrite"], &["--overwrite", "stream"]),
        (&["--cache-dir", "c", "info", "--model", model], &["--cache-dir", "not on the hub"]),
    ];
    for (number, (options, words)) in cases.iter().enumerate() {
        let mut command = place.bare();
        if options.contains(&"info") {
            command.args(*options);
        } else {
            let out = format!("{number}.npy");
            command.args(["--model", model, "--steps", "2", "--out", &out]).args(*options);
        }
        let warning = assert_done(&mut command);
        assert_eq!(warning.lines().count(), 1, "{options:?}: {warning}");
        for word in words.iter().chain(&["warning: ", " has no effect: "]) {
            assert!(warning.contains(word), "{word:?} is not in: {warning}");
        }
    }
    // The same options where they have one.
    fs::write(place.path("p.csv"), "caption,x\na cat,1\n").unwrap();
    let cases: &[&[&str]] = &[
        &["-f", "p.txt", "--format-in", "txt", "--on-error", "skip", "--out", "a.npy"],
        &["-f", "p.csv", "--prompt-column", "caption", "--out", "b.npy"],
        &["-p", "x", "--out-dir", "c", "--rows-per-file", "5"],
        &["-p", "x", "--guidance-scale", "1", "-n", "y", "--out", "d.npz"],
        &["-p", "x", "--out", "-", "--stats", "e.json", "--overwrite"],
        &["-p", "x", "--out", "f.npy", "--offline", "--on-error", "skip"],
    ];
    for options in cases {
        let mut command = place.command();
        assert_eq!(assert_done(command.args(*options)), "", "{options:?}");
    }
}

/// Every line says what is wrong and where, most what to do; nothing is left behind.
#[test]
fn odd_command_lines_are_one_clear_line() {
    let place = Workplace::new();
    for (name, text) in [
        ("p.txt", "a cat\ntwo dogs\n"),
        ("two.csv", "a,b\n1,2\n"),
        ("seed.csv", "prompt,seed\na,5\nb,x\n"),
        ("key.jsonl", "{\"prompt\": \"x\"}\n{\"nope\": 1}\n"),
        ("empty.txt", ""),
        ("empty.csv", ""),
        ("p.parquet", "PAR1 nonsense"),
        ("p.txt.gz", "not gzip"),
        ("p.pdf", "%PDF"),
        ("e.npy", "precious"),
        ("lora.safetensors", "junk"),
    ] {
        fs::write(place.path(name), text).unwrap();
    }
    fs::create_dir(place.path("folder")).unwrap();
    std::os::unix::fs::symlink("loop", place.path("loop")).unwrap();
    let model = model();
    let model = model.to_str().unwrap();
    let usage = [
        // Words without an option.
        (
            "\"a red apple\"",
            r#"unexpected argument "a red apple"; a prompt goes after -p, in quotes if it has spaces: -p "a red apple""#,
        ),
        ("-p a red apple -o n.npy", r#"unexpected argument "red""#),
        ("-p a red apple -o n.npy", "; a prompt goes after -p, in quotes if it has spaces"),
        ("p.txt", r#"unexpected argument "p.txt"; a file of prompts goes after -f: -f "p.txt""#),
        ("merg", "unexpected argument \"merg\"; a similar subcommand exists: 'merge'; a prompt goes after -p"),
        ("-- x", "unexpected argument \"x\"; a prompt goes after -p"),
        // Options that are none.
        (
            "--normalise -p a -o n.npy",
            "unexpected argument '--normalise' found; a similar argument exists: '--normalize'",
        ),
        ("-p x -o n.npy --step 3", "a similar argument exists: '--steps'"),
        ("-p x -o n.npy --stats", "a value is required for '--stats <FILE>' but none was supplied"),
        ("--hlep", "a similar argument exists: '--help'"),
        ("-x", "unexpected argument '-x' found; a prompt that looks like this is given as --prompt=-x"),
        ("merge --owerwrite a -o n.npy", "a similar argument exists: '--overwrite'; see prior-embed merge --help"),
        ("merge --steps 3 x -o n.npy", "unexpected argument '--steps' found; see prior-embed merge --help"),
        ("info --jsn", "a similar argument exists: '--json'; see prior-embed info --help"),
        ("info emoji -m emoji", "cannot be used with '--model <NAME>'; see prior-embed info --help"),
        ("serve --port x", "invalid digit found in string; see prior-embed serve --help"),
        ("edit @a --theta x", "; see prior-embed edit --help"),
        ("-q score --top 0", "; see prior-embed score --help"),
        ("models x", "unexpected argument 'x' found; see prior-embed models --help"),
        ("download a b", "unexpected argument 'b' found; see prior-embed download --help"),
        // What is missing.
        ("-p x", "required arguments were not provided: --out <FILE>"),
        ("-q", "required arguments were not provided: --out <FILE>"),
        ("-o n.npy", "no prompt; give --prompt TEXT, or --prompts FILE"),
        ("-p", "a value is required for '--prompt <TEXT>' but none was supplied"),
        ("-p --normalize -o n.npy", "none was supplied; a text that looks like an option is given as --prompt=TEXT"),
        ("-p -o n.npy", "a text that looks like an option is given as --prompt=TEXT"),
        ("-p x -n --steps 3 -o n.npy", "a text that looks like an option is given as --negative-prompt=TEXT"),
        ("-p x -o ''", "a value is required for '--out <FILE>'"),
        ("-f '' -o n.npy", "a value is required for '--prompts <FILE>...'"),
        ("merge", "not provided: --out <FILE> <PART>...; see prior-embed merge --help"),
        ("merge -o n.npy", "not provided: <PART>...; see prior-embed merge --help"),
        ("download", "not provided: <NAME>; see prior-embed download --help"),
        ("convert MODEL", "not provided: <DST>; see prior-embed convert --help"),
        // Values.
        (
            "-p x -o n.npy --steps 0",
            "invalid value '0' for '--steps <N>': it must be a number of steps between 1 and 2147483647",
        ),
        ("-p x -o n.npy --steps 2.5", "invalid value '2.5' for '--steps <N>'"),
        ("-p x -o n.npy --steps ''", "invalid value '' for '--steps <N>'"),
        ("-p x -o n.npy --steps 1001", "--steps: 1001 steps are not possible, the model was trained with 1 to 1000"),
        (
            "-p x -o n.npy --guidance-scale 4,5",
            "invalid value '4,5' for '--guidance-scale <G>': it must be a finite number",
        ),
        ("-p x -o n.npy --guidance-scale 1e400", "it must be a finite number"),
        ("-p x -o n.npy --seed 1.0", "it must be a whole number between 0 and 18446744073709551615"),
        ("-p x -o n.npy --seed 18446744073709551616", "it must be a whole number between 0"),
        ("-p x -o n.npy --samples-per-prompt -1", "it must be a number of samples between 1"),
        ("-p x -o n.npy --batch-size all", "it must be auto or a number of rows"),
        ("-p x -o n.npy --threads auto", "it must be a number of threads between 1"),
        ("-p x -o n.npy --device gpu", "it must be auto, cpu, cuda, cuda:I or mps"),
        ("-p x -o n.npy --device cuda:9", "--device cuda:9: "),
        ("-p x -o n.npy --dtype fp16", "[possible values: auto, f32, bf16, f16, int8]; a similar value exists: 'f16'"),
        ("-p x -o n.npy --scheduler euler_ancestral", "a similar value exists: 'euler-ancestral'"),
        ("-p x -o n.npy --scheduler euler-ancestral", "prediction_type is \"sample\", which this scheduler lacks"),
        (
            "-p x -o n.npy --scheduler heun --eta 1",
            "--eta: only the scheduler ddim takes it, and this one is heun; leave it out",
        ),
        ("-p x -o n.npy --sde", "--sde: only the scheduler dpm-solver++ takes it, and this one is unclip"),
        ("-p x -o n.npy --scheduler ddim --solver-order 2", "--solver-order: only the scheduler dpm-solver++ takes it"),
        ("-p x -o n.npy --scheduler ddim --eta 1.5", "--eta: it is 1.5, and must be between 0 and 1"),
        ("-p x -o n.npy --scheduler ddim --eta nan", "it must be a finite number"),
        ("-p x -o n.npy --scheduler dpm-solver++ --solver-order 4", "4 is not in 1..=3"),
        (
            "-p x -o n.npy --scheduler euler --steps 20000",
            "--steps: 20000 steps are not possible, it must be 1 to 10000",
        ),
        ("-p x -o n.npy --out-dtype bf16", "[possible values: f32, f16]"),
        ("-p x -o n.npy --format csv", "it must be npy, npz, safetensors, jsonl, jsonl-base64, parquet or ipadpt"),
        ("-p x -o n.npy --shard 4/3", "it must be I/N with I between 1 and N, for example 1/8"),
        ("-p x -o n.npy --shard 1/0", "it must be I/N"),
        ("-p x -o n.npy --rows-per-file 0", "it must be a number of rows, 1 or more"),
        ("-p x -o n.npy --on-error ignore", "[possible values: fail, skip]"),
        ("-p x -o n.npy --format-in xml", "[possible values: txt, jsonl, csv, tsv, parquet]"),
        // What does not go together.
        ("-p x -o n.npy -q -v", "--quiet and --verbose exclude each other"),
        ("-q merge a -o n.npy -v", "--quiet and --verbose exclude each other"),
        ("-p x merge a -o n.npy", "--prompt does not go before the command merge; leave it out"),
        ("--overwrite merge a -o n.npy", "--overwrite does not go before the command merge; give it after merge"),
        ("-m karlo info", "--model does not go before the command info; give it after info"),
        ("-f p.txt - -f - -o n.npy", "--prompts: standard input is named twice, and can be read only once"),
        ("-f hf://datasets/a -o n.npy", "--prompts: \"hf://datasets/a\" is no path of a data set"),
        ("-p x -n a -n b -o n.npy", "--negative-prompt cannot be used multiple times"),
        ("-p x -o n.npy --out-dir d", "the argument '--out <FILE>' cannot be used with '--out-dir <DIR>'"),
        (
            "-p x -o n.npy --revision main",
            "--revision: it is for models on the hub, and \"emoji\" is none; leave it out",
        ),
        ("-m karlo@a --revision b -p x -o n.npy", "--revision: model \"karlo@a\" names one itself"),
        ("-f - -o n.npy --resume", "--resume needs prompts that can be read again"),
        ("-f p.txt -o - --shard 1/2", "--shard needs files, and \"-\" is a stream"),
        ("-f p.txt --prompt-column c -o n.npy", "p.txt is read as text, which has no columns"),
        ("convert MODEL n --config x", "--config goes with a prior alone"),
        // Places to write.
        ("-p x -o e.npy", "e.npy\" is there already; give another name, or --overwrite"),
        ("-p x -o n", "\"n\" does not end in .npy, .npz, .safetensors, .jsonl, .parquet or .ipadpt; rename it"),
        ("-p x -o folder", "\"folder\" is a folder; give a file name, or --out-dir"),
        ("-p x -o none/n.npy", "there is no folder \"none\"; make it first"),
        ("-p x --out-dir none/d", "there is no folder \"none\"; make it first"),
        ("-p x --out-dir p.txt", "is a file; give the name of a folder"),
        ("-p x -o n.npy --negative-out n.npy", "--out and --negative-out are the same file; give two names"),
        ("-p x -o n.npy --stats folder", "\"folder\" is a folder; give a file name"),
        ("convert MODEL none/d", "there is no folder \"none\"; make it first"),
        // Files to read.
        ("-f none.txt -o n.npy", "cannot read the prompts file \"none.txt\" (No such file or directory)"),
        ("-f loop -o n.npy", "cannot read the prompts file \"loop\" (Too many levels of symbolic links)"),
        ("-f folder -o n.npy", "\"folder\" holds no prompt files (.txt, .jsonl"),
        ("-f p.pdf -o n.npy", "ends in .pdf; rename it, or say what it holds with --format-in"),
        ("-f empty.txt -o n.npy", "empty.txt holds no prompts; write one a line"),
        ("-f empty.csv -o n.npy", "empty.csv is empty; a header"),
        ("-f two.csv -o n.npy", "two.csv has no column \"prompt\", only \"a\", \"b\"; name one with --prompt-column"),
        ("-f seed.csv -o n.npy", "seed.csv:3: \"seed\" must be a whole number"),
        ("-f key.jsonl -o n.npy", "key.jsonl:2: there is no \"prompt\""),
        ("-f p.parquet -o n.npy", "p.parquet is not a Parquet file"),
        ("-f p.txt.gz -o n.npy", "the gzip data are damaged"),
        ("-p x -o n.npy --lora none.safetensors", "none.safetensors: there is no such file or folder"),
        ("-p x -o n.npy --lora lora.safetensors:inf", "the scale must be a finite number"),
        ("-p x -o n.npy --lora lora.safetensors", "lora.safetensors is not a valid safetensors file"),
        ("-m none -p x -o n.npy", "model: \"none\" is neither a folder on this machine nor the name of a model"),
        ("-m p.txt -p x -o n.npy", "model: \"p.txt\" is a file; give the folder"),
        ("info folder", "folder has no prior"),
        ("download emoji", "\"emoji\" is on this machine already; there is nothing to download"),
        (
            "--offline --cache-dir c download karlo",
            "is not in the cache in \"c\", and --offline or HF_HUB_OFFLINE forbids to download it",
        ),
        ("merge e.npy -o n.npy", "\"e.npy\" has no \"e.npy.shard.json\""),
        ("convert p.txt n", "\"p.txt\" is a prior alone; give --config FOLDER"),
    ];
    for (arguments, line) in usage {
        let script = format!("exec {BINARY:?} {}", arguments.replace("MODEL", model));
        let mut command = assert_cmd::Command::new("bash");
        command.current_dir(place.folder.path()).args(["-c", &script]);
        assert_refused(&place, &mut command, 2, &["prior-embed: error: ", line]);
    }
    assert_eq!(fs::read_to_string(place.path("e.npy")).unwrap(), "precious");
}

#[test]
fn text_that_is_no_utf8_is_named_by_its_option() {
    let place = Workplace::new();
    let broken = std::ffi::OsStr::from_bytes(b"caf\xe9");
    for (option, name) in [("-p", "--prompt"), ("-n", "--negative-prompt"), ("-m", "--model"), ("--lora", "--lora")] {
        let mut command = place.bare();
        command.args(["-p", "x", "-o", "n.npy"]).arg(option).arg(broken);
        assert_refused(&place, &mut command, 2, &[&format!("for '{name} <"), "it is not UTF-8"]);
    }
}
