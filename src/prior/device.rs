//! Where a prior computes.

use crate::{Error, Result};

/// Where a [`crate::Prior`] computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// The CUDA device of this index.
    Cuda(usize),
    /// Apple's GPU.
    Mps,
}

impl Device {
    /// libtorch's name of it.
    ///
    /// # Errors
    /// [`Error::Option`] if this machine or this build of libtorch has no such device.
    pub(super) fn torch(self) -> Result<tch::Device> {
        let missing = |reason: String| Error::Option { option: "device", reason };
        match self {
            Self::Cpu => Ok(tch::Device::Cpu),
            Self::Cuda(index) => match usize::try_from(tch::Cuda::device_count()).unwrap_or(0) {
                count if index < count => Ok(tch::Device::Cuda(index)),
                count => Err(missing(format!("there is no CUDA device {index}; libtorch sees {count}"))),
            },
            Self::Mps if tch::utils::has_mps() => Ok(tch::Device::Mps),
            Self::Mps => Err(missing("libtorch sees no MPS device".into())),
        }
    }
}
