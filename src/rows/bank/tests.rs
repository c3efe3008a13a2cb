use super::*;
use arrow_array::builder::{FixedSizeListBuilder, Float16Builder, Float64Builder, ListBuilder};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use half::{bf16, f16};
use ndarray::{Array2, Array3, ShapeBuilder, array};
use ndarray_npy::{NpzWriter, WriteNpyExt};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use safetensors::tensor::{Dtype, TensorView};
use std::fs;
use std::sync::Arc;
use tempfile::TempDir;

/// Rows 0 to 6 of numbers that every type holds.
fn expected() -> Array2<f64> {
    Array2::from_shape_fn((7, 3), |(row, column)| row as f64 - 0.5 * column as f64)
}

fn npy_of(array: impl WriteNpyExt) -> Vec<u8> {
    let mut bytes = Vec::new();
    array.write_npy(&mut bytes).unwrap();
    bytes
}

/// A `.npy` file as ml_dtypes and numpy write types that `ndarray-npy` does not know.
fn npy_of_bytes(descriptor: &str, rows: usize, numbers: Vec<u8>) -> Vec<u8> {
    let header = format!("{{'descr': '{descriptor}', 'fortran_order': False, 'shape': ({rows}, 3), }}\n");
    [&b"\x93NUMPY\x01\x00"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), &numbers].concat()
}

fn safetensors_of(arrays: &[(&str, Dtype, Vec<u8>)]) -> Vec<u8> {
    let views = arrays.iter().map(|(name, dtype, bytes)| {
        let rows = bytes.len() * 8 / dtype.bitsize() / 3;
        (*name, TensorView::new(*dtype, vec![rows, 3], bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// A table of embeddings, `list` of them a row group, with ids and captions.
fn parquet_of(embeds: ArrayRef, groups: usize) -> Vec<u8> {
    let rows = embeds.len() as i64;
    let captions = (0..rows).map(|row| (row != 2).then(|| format!("caption {row}"))).collect::<StringArray>();
    let columns: [(&str, ArrayRef); 3] = [
        ("id", Arc::new(Int64Array::from_iter_values((0..rows).map(|row| row * 10)))),
        ("image_embeds", embeds),
        ("prompt", Arc::new(captions)),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(groups)).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn halves() -> Vec<u8> {
    expected().iter().flat_map(|value| f16::from_f64(*value).to_le_bytes()).collect()
}

/// All rows of a bank, in blocks of at most `max`.
fn read(path: &Path, max: usize) -> Result<Array2<f64>> {
    let bank = Bank::open(path)?;
    let (mut numbers, mut next) = (Vec::new(), 0);
    bank.for_each_block(max, &mut |block| {
        assert!(block.first == next && block.rows() <= max && block.rows() > 0 && block.dim == bank.dim());
        next += block.rows() as u64;
        numbers.extend((0..block.rows()).flat_map(|place| block.numbers(place)));
        Ok(())
    })?;
    Ok(Array2::from_shape_vec((next as usize, bank.dim()), numbers)?)
}

#[test]
fn every_format_and_type_is_read_in_blocks_of_any_size() {
    let folder = TempDir::new().unwrap();
    let expected = expected();
    let single = expected.mapv(|value| value as f32);
    let bfloats: Vec<u8> = expected.iter().flat_map(|value| bf16::from_f64(*value).to_le_bytes()).collect();
    let doubles: Vec<u8> = expected.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut fortran = Array2::zeros((7, 3).f());
    fortran.assign(&single);
    let mut npz = NpzWriter::new_compressed(fs::File::create(folder.path().join("e.npz")).unwrap());
    npz.add_array("negative_image_embeds", &Array2::<f32>::zeros((7, 3))).unwrap();
    npz.add_array("image_embeds", &single).unwrap();
    npz.finish().unwrap();
    let mut fixed = FixedSizeListBuilder::new(Float16Builder::new(), 3);
    let mut list = ListBuilder::new(Float64Builder::new());
    for row in expected.rows() {
        row.iter().for_each(|value| fixed.values().append_value(f16::from_f64(*value)));
        fixed.append(true);
        list.append_value(row.iter().map(|value| Some(*value)));
    }
    for (name, bytes) in [
        ("single.npy", npy_of(single.clone())),
        ("double.npy", npy_of(expected.clone())),
        ("fortran.npy", npy_of(fortran)),
        ("half.npy", npy_of_bytes("<f2", 7, halves())),
        ("bfloat.NPY", npy_of_bytes("|V2", 7, bfloats.clone())),
        ("one.safetensors", safetensors_of(&[("any", Dtype::BF16, bfloats)])),
        ("two.safetensors", safetensors_of(&[("image_embeds", Dtype::F64, doubles), ("a", Dtype::F16, halves())])),
        ("fixed.parquet", parquet_of(Arc::new(fixed.finish()), 3)),
        ("list.parquet", parquet_of(Arc::new(list.finish()), 100)),
    ] {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    for entry in folder.path().read_dir().unwrap() {
        let path = entry.unwrap().path();
        for max in [1, 2, 7, 1000] {
            assert_eq!(read(&path, max).unwrap(), expected, "{path:?} in blocks of {max}");
        }
    }
    fs::write(folder.path().join("one.npy"), npy_of(array![1.0_f32, 2.0])).unwrap();
    assert_eq!(read(&folder.path().join("one.npy"), 5).unwrap(), array![[1.0, 2.0]], "a single embedding");
}

#[test]
fn a_folder_is_its_files_by_number() {
    let folder = TempDir::new().unwrap();
    let inner = folder.path().join("img_emb");
    fs::create_dir_all(&inner).unwrap();
    let write = |name: &str, rows: &[f32]| {
        fs::write(inner.join(name), npy_of(Array2::from_shape_fn((rows.len(), 1), |(row, _)| rows[row]))).unwrap();
    };
    write("img_emb_10.npy", &[4.0]);
    write("img_emb_9.npy", &[1.0, 2.0, 3.0]);
    write("img_emb_3.npy", &[]);
    fs::write(inner.join(".img_emb_1.npy"), "hidden").unwrap();
    fs::write(inner.join("notes.txt"), "no array").unwrap();
    for path in [folder.path(), &inner] {
        assert_eq!(read(path, 2).unwrap(), array![[1.0], [2.0], [3.0], [4.0]]);
    }
    fs::write(inner.join("img_emb_11.npy"), npy_of(Array2::<f32>::zeros((2, 5)))).unwrap();
    let error = Bank::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("img_emb_11.npy\" has rows of 5 numbers") && error.contains("of 1"), "{error}");
    let empty = TempDir::new().unwrap();
    assert!(Bank::open(empty.path()).unwrap_err().to_string().contains("neither .npy files nor a folder img_emb"));
}

#[test]
fn labels_are_those_of_the_rows() {
    let folder = TempDir::new().unwrap();
    let mut list = ListBuilder::new(Float64Builder::new());
    (0..10).for_each(|row| list.append_value([Some(f64::from(row)), Some(1.0)]));
    let table = parquet_of(Arc::new(list.finish()), 3);
    fs::write(folder.path().join("bank.parquet"), &table).unwrap();
    let label = |id: &str, caption: Option<&str>| Label { id: Some(id.into()), caption: caption.map(str::to_string) };
    let bank = Bank::open(&folder.path().join("bank.parquet")).unwrap();
    let found = bank.labels(&BTreeSet::from([9, 2, 4])).unwrap();
    let [two, four, nine] = [label("20", None), label("40", Some("caption 4")), label("90", Some("caption 9"))];
    assert_eq!(found, BTreeMap::from([(2, two), (4, four.clone()), (9, nine)]));
    assert!(bank.has_labels() && bank.labels(&BTreeSet::new()).unwrap().is_empty());

    for name in ["img_emb", "metadata"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    for number in [0, 1] {
        let rows = Array2::<f32>::ones((10, 2));
        fs::write(folder.path().join(format!("img_emb/img_emb_000{number}.npy")), npy_of(rows)).unwrap();
    }
    fs::write(folder.path().join("metadata/metadata_0001.parquet"), &table).unwrap();
    let bank = Bank::open(folder.path()).unwrap();
    assert_eq!(bank.labels(&BTreeSet::from([3, 14])).unwrap(), BTreeMap::from([(14, four)]));
}

#[test]
fn what_is_no_bank_is_refused() {
    let folder = TempDir::new().unwrap();
    let mut ragged = ListBuilder::new(Float64Builder::new());
    ragged.append_value([Some(1.0), Some(2.0)]);
    ragged.append_value([Some(1.0)]);
    let mut null = ListBuilder::new(Float64Builder::new());
    null.append_value([Some(1.0)]);
    null.append_null();
    let empty: ArrayRef = Arc::new(ListBuilder::new(Float64Builder::new()).finish());
    for (name, bytes, words) in [
        ("a.txt", b"x".to_vec(), "does not end in"),
        ("b.npy", b"x".to_vec(), "not a valid .npy file"),
        ("c.npy", npy_of(Array2::<i32>::ones((2, 2))), "numbers of type \"i4\""),
        ("d.npy", npy_of(Array3::<f32>::ones((2, 2, 2))), "shape [2, 2, 2]"),
        ("e.npy", npy_of(Array2::<f32>::ones((0, 2))), "holds no embeddings"),
        ("f.npy", npy_of(Array2::<f32>::ones((2, 0))), "holds no embeddings"),
        ("g.npy", npy_of_bytes("<f2", 8, halves()), "is truncated: it has 42 bytes"),
        ("h.npy", npy_of_bytes("<f2", usize::MAX / 2, halves()), "is truncated"),
        ("i.safetensors", safetensors_of(&[("a", Dtype::F16, halves()), ("b", Dtype::F16, halves())]), "image_embeds"),
        ("j.safetensors", safetensors_of(&[("a", Dtype::I16, halves())]), "of type I16"),
        ("k.parquet", b"PAR1PAR1".to_vec(), "not a Parquet file"),
        ("l.parquet", parquet_of(Arc::new(StringArray::from(vec!["x"])), 5), "no column of embeddings"),
        ("m.parquet", parquet_of(Arc::new(ragged.finish()), 5), "is not a list of 2 numbers"),
        ("n.parquet", parquet_of(Arc::new(null.finish()), 5), "is not a list of 1 numbers"),
        ("o.parquet", parquet_of(empty, 5), "holds no embeddings"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = read(&path, 10).unwrap_err();
        assert_eq!(crate::cli::errors::exit_code(&error), 2, "{error}");
        assert!(error.to_string().contains(words) && error.to_string().contains(name), "{error}");
    }
}

#[test]
fn damage_makes_an_error_and_no_panic() {
    let folder = TempDir::new().unwrap();
    let mut list = ListBuilder::new(Float64Builder::new());
    (0..4).for_each(|row| list.append_value([Some(f64::from(row)), Some(1.0)]));
    for (name, whole) in [
        ("a.npy", npy_of(expected())),
        ("a.safetensors", safetensors_of(&[("any", Dtype::F16, halves())])),
        ("a.parquet", parquet_of(Arc::new(list.finish()), 3)),
    ] {
        let path = folder.path().join(name);
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read(&path, 2).and_then(|_| Bank::open(&path)?.labels(&BTreeSet::from([0, 3])))
        };
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "{name} cut at {cut}");
        }
        for place in 0..whole.len() {
            let mut changed = whole.clone();
            changed[place] ^= 0x81;
            let _ = read(&changed);
        }
    }
}
