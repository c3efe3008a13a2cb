//! Ctrl-C and SIGTERM: the first asks the run to stop, the second ends the process at once. One that the process was told
//! to ignore stays ignored.

use crate::kernels::process;
use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Whether the run is asked to stop.
#[derive(Debug, Default)]
pub struct Stop {
    number: Arc<AtomicUsize>,
    is_asked: Arc<AtomicBool>,
}

impl Stop {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the system does not allow it.
    pub fn listen() -> Result<Self> {
        let number = Arc::new(AtomicUsize::new(0));
        let is_asked = Arc::new(AtomicBool::new(false));
        // A shell without job control starts its background jobs with SIGINT ignored: Ctrl-C is not meant for them.
        for signal in [SIGINT, SIGTERM].into_iter().filter(|signal| !process::is_ignored(*signal)) {
            let listen = || -> std::io::Result<()> {
                // In this order: the first signal must find the flag still down, and who sees it up the number.
                flag::register_conditional_shutdown(signal, exit_code(signal).into(), Arc::clone(&is_asked))?;
                flag::register_usize(signal, Arc::clone(&number), signal as usize)?;
                flag::register(signal, Arc::clone(&is_asked))?;
                Ok(())
            };
            listen().context("cannot listen for Ctrl-C")?;
        }
        Ok(Self { number, is_asked })
    }

    /// The signal that asks to stop, if one does.
    pub fn signal(&self) -> Option<i32> {
        let signal = self.number.load(Ordering::Relaxed);
        (signal != 0).then_some(signal as i32)
    }

    /// Set when one does.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_asked)
    }
}

/// What a process that ends for a signal tells its caller, as shells have it.
pub fn exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}
