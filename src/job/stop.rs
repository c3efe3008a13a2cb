//! Ctrl-C and SIGTERM: the first stops the run, the second ends the process at once. A signal that the process was
//! started with ignored stays ignored.

use crate::kernels::process;
use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Whether a signal has asked the run to stop. Clones share their state.
#[derive(Debug, Default, Clone)]
pub struct Stop {
    number: Arc<AtomicUsize>,
    is_asked: Arc<AtomicBool>,
}

impl Stop {
    /// Installs the signal handlers.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn listen() -> Result<Self> {
        let number = Arc::new(AtomicUsize::new(0));
        let is_asked = Arc::new(AtomicBool::new(false));
        // A shell without job control starts background jobs with SIGINT ignored: Ctrl-C is not meant for them.
        for signal in [SIGINT, SIGTERM].into_iter().filter(|signal| !process::is_ignored(*signal)) {
            let listen = || -> std::io::Result<()> {
                // In this order: the first signal must find the flag unset, and whoever sees it set must find the
                // number.
                flag::register_conditional_shutdown(signal, signal_exit_code(signal).into(), Arc::clone(&is_asked))?;
                flag::register_usize(signal, Arc::clone(&number), signal as usize)?;
                flag::register(signal, Arc::clone(&is_asked))?;
                Ok(())
            };
            listen().context("cannot listen for Ctrl-C")?;
        }
        Ok(Self { number, is_asked })
    }

    /// The signal, if one has come.
    pub fn signal(&self) -> Option<i32> {
        let signal = self.number.load(Ordering::Relaxed);
        (signal != 0).then_some(signal as i32)
    }

    /// Set when a signal comes.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_asked)
    }

    /// What a signal does.
    #[cfg(test)]
    pub(super) fn raise(&self, signal: usize) {
        self.number.store(signal, Ordering::Relaxed);
        self.is_asked.store(true, Ordering::Relaxed);
    }
}

/// The exit code of a process that a signal ends, as in shells: 128 + signal.
pub fn signal_exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}
