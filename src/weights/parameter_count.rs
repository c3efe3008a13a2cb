//! How many parameters a network has, and the memory that they take.

use super::precision::Precision;
use tch::Device;

/// How many parameters a network has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ParameterCount {
    /// All of them.
    pub all: u64,
    /// Those in matrices that are stored in 16 bits.
    pub sixteen_bit: u64,
}

impl ParameterCount {
    /// The bytes that they take in this precision on a device.
    pub fn bytes(self, precision: Precision, device: Device) -> u64 {
        // What is widened in registers stays as it is.
        let stays = precision == Precision::F32 && Precision::Bf16Weights.is_fast_on(device);
        let narrow = if stays { self.sixteen_bit } else { 0 };
        let rest = self.all.saturating_sub(narrow).saturating_mul(precision.bytes());
        rest.saturating_add(narrow.saturating_mul(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_of_16_bits_take_half_where_they_are_widened_in_registers() {
        let count = ParameterCount { all: 1000, sixteen_bit: 900 };
        let bytes = |precision| count.bytes(precision, Device::Cpu);
        let widened = Precision::Bf16Weights.is_fast_on(Device::Cpu);
        assert_eq!(bytes(Precision::F32), if widened { 100 * 4 + 900 * 2 } else { 4000 });
        assert_eq!(count.bytes(Precision::F32, Device::Cuda(0)), 4000);
        assert_eq!([Precision::Bf16, Precision::F16, Precision::Int8].map(bytes), [2000, 2000, 1000]);
        let huge = ParameterCount { all: u64::MAX, sixteen_bit: u64::MAX };
        assert!(huge.bytes(Precision::F32, Device::Cpu) > u64::MAX / 2);
    }
}
