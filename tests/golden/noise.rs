//! Seeded normals against `torch.Generator`.

use super::common::{Fixture, fixtures, relative_error};
use crate::diffusion::noise::{BatchNoise, NoiseSource, RowNoise};
use sha2::{Digest, Sha256};
use tch::{Device, Tensor};

#[test]
fn a_seed_gives_the_normals_of_a_python_generator() {
    let fixture = Fixture::open(&fixtures().join("noise.safetensors"));
    for name in fixture.names() {
        let parts: Vec<&str> = name.split('.').collect();
        let (seed, dim) = (parts[1].parse().unwrap(), parts[3].parse().unwrap());
        let noise = RowNoise::draw(seed, dim, 2).unwrap();
        let draws = Tensor::cat(&[&noise.latents, &noise.steps[0], &noise.steps[1]], 0);
        let expected = fixture.tensor(name);
        // Of long rows the file holds the first and the last 8 values.
        let held = if expected.size()[1] == dim {
            draws
        } else {
            Tensor::cat(&[draws.slice(1, 0, 8, 1), draws.slice(1, -8, dim, 1)], 1)
        };
        assert_eq!(&held, expected, "{name}");
    }
}

#[test]
fn a_million_normals_are_those_of_a_python_generator() {
    let fixture = Fixture::open(&fixtures().join("noise.safetensors"));
    let [seed, count] = ["seed", "many"].map(|key| fixture.metadata(key));
    let noise = RowNoise::draw(seed.parse().unwrap(), count.parse().unwrap(), 0).unwrap();
    let normals = Vec::<f32>::try_from(noise.latents.reshape(-1)).unwrap();
    let bytes: Vec<u8> = normals.into_iter().flat_map(f32::to_le_bytes).collect();
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, fixture.metadata("sha256"));
}

#[test]
fn a_rows_noise_does_not_depend_on_its_batch() {
    let batch = BatchNoise::draw(&[7, 0, 9].map(NoiseSource::from), 24, 3, Device::Cpu).unwrap();
    let alone = BatchNoise::draw(&[9.into()], 24, 3, Device::Cpu).unwrap();
    assert_eq!(relative_error(&batch.latents.narrow(0, 2, 1), &alone.latents), 0.0);
    assert_eq!(relative_error(&batch.steps[2].narrow(0, 2, 1), &alone.steps[2]), 0.0);
}
