//! Bounds the memory that a file can demand. The decoder allocates what a page's header declares, and builds the schema
//! by recursion; a file of a few bytes may declare gigabytes.
//!
//! The crate does not give access to page headers and schema before it acts on them, so they are read here first: both
//! are structs in Thrift's compact protocol.

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, Length};
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The size that a page of any file may have.
const MAX_PAGE_BYTES: u64 = 256 << 20;

/// The size that a page of a larger file may have, as a multiple of the file's.
const MAX_RATIO: u64 = 10;

/// The size of the footer, which the metadata is several times as large as.
const MAX_FOOTER_BYTES: u64 = 32 << 20;

/// The nesting of columns.
const MAX_DEPTH: usize = 64;

/// The length of all columns' paths, which the metadata has copies of.
const MAX_PATH_BYTES: i64 = 64 << 20;

fn damaged(reason: &str) -> ParquetError {
    ParquetError::General(reason.into())
}

/// The limits of a file, and which of them it exceeded: the decoder keeps no more of an error than its text.
#[derive(Debug)]
pub(in crate::rows) struct Limits {
    max_page_bytes: u64,
    exceeded: OnceLock<String>,
}

impl Limits {
    pub(in crate::rows) fn of_file(file: &File) -> Arc<Self> {
        Self::of_page(MAX_PAGE_BYTES.max(file.len().saturating_mul(MAX_RATIO)))
    }

    fn of_page(max_page_bytes: u64) -> Arc<Self> {
        Arc::new(Self { max_page_bytes, exceeded: OnceLock::new() })
    }

    /// The limit that was exceeded, as a clause about the file.
    pub(in crate::rows) fn exceeded(&self) -> Option<&str> {
        self.exceeded.get().map(String::as_str)
    }

    fn exceed(&self, limit: String) -> ParquetError {
        ParquetError::General(self.exceeded.get_or_init(|| limit).clone())
    }

    /// Checks what decoding the footer takes.
    ///
    /// # Errors
    /// If it exceeds a limit, or is damaged.
    pub(in crate::rows) fn check_footer(&self, mut file: &File) -> Result<(), ParquetError> {
        const END_BYTES: u64 = 8;
        let end_start = file.len().checked_sub(END_BYTES).ok_or_else(|| damaged("the file is too short"))?;
        let mut end = [0; END_BYTES as usize];
        file.seek(SeekFrom::Start(end_start))?;
        file.read_exact(&mut end)?;
        let [a, b, c, d, b'P', b'A', b'R', b'1'] = end else { return Err(damaged("the file does not end in PAR1")) };
        let size = u64::from(u32::from_le_bytes([a, b, c, d]));
        let start = end_start.checked_sub(size).ok_or_else(|| damaged("the footer is longer than the file"))?;
        if size > MAX_FOOTER_BYTES {
            return Err(self.exceed(format!("its footer is larger than {} MiB", MAX_FOOTER_BYTES >> 20)));
        }
        file.seek(SeekFrom::Start(start))?;
        match path_bytes(&mut BufReader::new(file.take(size)))? {
            MAX_PATH_BYTES.. => {
                Err(self.exceed(format!("the names of its columns take more than {} MiB", MAX_PATH_BYTES >> 20)))
            }
            _ => Ok(()),
        }
    }
}

/// The length of all columns' paths, by the list of `SchemaElement` in `FileMetaData` of parquet.thrift.
fn path_bytes(footer: &mut dyn Read) -> io::Result<i64> {
    // The children to come of each group that is open, and the length of its path.
    let mut open: Vec<(i64, i64)> = Vec::new();
    let (mut name, mut children, mut all, mut is_valid) = (0, 0, 0_i64, true);
    walk(footer, &mut Vec::new(), STRUCT, &mut |path, value| match path {
        [2, ELEMENT, 4] => name = value,
        [2, ELEMENT, 5] => children = value,
        [2, ELEMENT] => {
            while open.pop_if(|(children, _)| *children == 0).is_some() {}
            let path = open.last().map_or(0, |(_, path)| *path) + name;
            if let Some((children, _)) = open.last_mut() {
                *children -= 1;
            }
            if children > 0 {
                open.push((children, path));
            } else {
                all = all.saturating_add(path);
            }
            is_valid &= open.len() <= MAX_DEPTH;
            (name, children) = (0, 0);
        }
        _ => {}
    })?;
    // A group with more children than there are elements would make room for them.
    if is_valid && open.iter().all(|(children, _)| *children == 0) {
        Ok(all)
    } else {
        Err(ErrorKind::InvalidData.into())
    }
}

/// Types of the compact protocol.
const TRUE: u8 = 1;
const STRUCT: u8 = 12;

/// The field id of a list's elements in a path.
const ELEMENT: i64 = 0;

/// Reads a value in Thrift's compact protocol. Calls `visit` for it and for all values in it, with the path of field
/// ids below `path` and the number that it is: of a text the length, of a list the element count; structs after their
/// fields.
fn walk(input: &mut dyn Read, path: &mut Vec<i64>, kind: u8, visit: &mut dyn FnMut(&[i64], i64)) -> io::Result<()> {
    if path.len() > MAX_DEPTH {
        return Err(ErrorKind::InvalidData.into());
    }
    let value = match kind {
        TRUE => 1,
        2 => 0,
        3 => byte(input)?.into(),
        4..=6 => signed(input)?,
        7 => skip(input, 8)?,
        8 => {
            let size = varint(input)?;
            skip(input, size)?
        }
        9 | 10 => {
            let head = byte(input)?;
            let (count, kind) = (if head >> 4 == 15 { varint(input)? } else { u64::from(head >> 4) }, head & 15);
            path.push(ELEMENT);
            for _ in 0..count {
                // The value of an element is not in its type.
                let kind = if matches!(kind, TRUE | 2) { 3 } else { kind };
                walk(input, path, kind, visit)?;
            }
            path.pop();
            count.cast_signed()
        }
        STRUCT => {
            let mut id = 0_i64;
            loop {
                let head = byte(input)?;
                if head == 0 {
                    break 0;
                }
                id = if head >> 4 == 0 { signed(input)? } else { id.saturating_add((head >> 4).into()) };
                path.push(id);
                walk(input, path, head & 15, visit)?;
                path.pop();
            }
        }
        _ => return Err(ErrorKind::InvalidData.into()),
    };
    visit(path, value);
    Ok(())
}

fn byte(input: &mut dyn Read) -> io::Result<u8> {
    let mut byte = [0];
    input.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn varint(input: &mut dyn Read) -> io::Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = byte(input)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(ErrorKind::InvalidData.into())
}

fn signed(input: &mut dyn Read) -> io::Result<i64> {
    let value = varint(input)?;
    Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
}

fn skip(input: &mut dyn Read, size: u64) -> io::Result<i64> {
    io::copy(&mut input.take(size), &mut io::sink()).map(u64::cast_signed)
}

/// The parts of a page header that tell what memory its page takes.
#[derive(Debug, Default, Clone, Copy)]
struct PageHeader {
    /// The decompressed page.
    bytes: i64,
    /// The levels at its start, which are not compressed.
    levels: i64,
    is_plain: bool,
    /// The values of a dictionary, which are decoded at once.
    dictionary_values: i64,
}

impl PageHeader {
    /// Reads a `PageHeader` of parquet.thrift.
    fn read(input: &mut dyn Read) -> io::Result<Self> {
        let mut header = Self::default();
        walk(input, &mut Vec::new(), STRUCT, &mut |path, value| match path {
            [2] => header.bytes = value,
            [7, 1] => header.dictionary_values = value,
            [8, 5 | 6] => header.levels += value,
            [8, 7] => header.is_plain = value == 0,
            _ => {}
        })?;
        Ok(header)
    }
}

/// A file that the decoder reads pages from: always the header and then the page. It looks at the header first.
pub(in crate::rows) struct LimitedFile {
    file: File,
    limits: Arc<Limits>,
    /// Where columns are that are compressed in a way whose decoder does not stop at the declared size.
    unbounded: Vec<(Range<u64>, Compression)>,
    /// The header that was read last.
    header: Mutex<PageHeader>,
}

impl LimitedFile {
    pub(in crate::rows) fn new(file: File, metadata: &ParquetMetaData, limits: Arc<Limits>) -> Self {
        let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
        let unbounded = columns
            .filter(|column| matches!(column.compression(), Compression::GZIP(_) | Compression::BROTLI(_)))
            .map(|column| {
                let (start, size) = column.byte_range();
                (start..start.saturating_add(size), column.compression())
            });
        Self { file, limits, unbounded: unbounded.collect(), header: Mutex::default() }
    }

    /// Checks that a page decompresses to no more than its header declares.
    fn check_size(&self, start: u64, page: &[u8]) -> Result<(), ParquetError> {
        let header = *self.header.lock().unwrap_or_else(PoisonError::into_inner);
        let compression = self.unbounded.iter().find(|(range, _)| range.contains(&start));
        let Some((_, compression)) = compression.filter(|_| !header.is_plain) else { return Ok(()) };
        let packed = page.get(header.levels as usize..).unwrap_or_default();
        let max = (header.bytes - header.levels).max(0).cast_unsigned();
        let decoder: &mut dyn Read = match compression {
            Compression::GZIP(_) => &mut MultiGzDecoder::new(packed),
            _ => &mut brotli::Decompressor::new(packed, 4096),
        };
        if max > 0 && io::copy(&mut decoder.take(max + 1), &mut io::sink())? > max {
            return Err(damaged("a page decompresses to more than its header declares"));
        }
        Ok(())
    }
}

impl Length for LimitedFile {
    fn len(&self) -> u64 {
        Length::len(&self.file)
    }
}

impl ChunkReader for LimitedFile {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let header = PageHeader::read(&mut self.file.get_read(start)?)?;
        let dictionary = header.dictionary_values.saturating_mul(size_of::<u128>() as i64);
        let needed = header.bytes.saturating_add(dictionary).cast_unsigned();
        if header.bytes < 0 || header.levels < 0 || needed > self.limits.max_page_bytes {
            return Err(self.limits.exceed(format!(
                "a page of it takes more than the {} MiB that a page of a file of this size may take; write it with \
                 smaller pages",
                self.limits.max_page_bytes >> 20
            )));
        }
        *self.header.lock().unwrap_or_else(PoisonError::into_inner) = header;
        self.file.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let bytes = self.file.get_bytes(start, length)?;
        self.check_size(start, &bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, RecordBatch, StringArray};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{BrotliLevel, Encoding, GzipLevel, ZstdLevel};
    use parquet::file::metadata::ParquetMetaDataReader;
    use parquet::file::properties::{WriterProperties, WriterVersion};
    use parquet::file::reader::SerializedPageReader;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn written(texts: Vec<String>, properties: WriterProperties) -> Vec<u8> {
        let batch = RecordBatch::try_from_iter([("prompt", Arc::new(StringArray::from(texts)) as ArrayRef)]).unwrap();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    }

    /// The number of pages of the first column, where each may take `max` bytes; or whether a limit was exceeded, and
    /// the error.
    fn pages(bytes: &[u8], max: u64) -> Result<usize, (bool, String)> {
        let (file, limits) = (file(bytes), Limits::of_page(max));
        limits.check_footer(&file).unwrap();
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&file).unwrap();
        let file = Arc::new(LimitedFile::new(file, &metadata, limits.clone()));
        let pages = SerializedPageReader::new(file, metadata.row_group(0).column(0), 0, None).unwrap();
        let pages = pages.collect::<Result<Vec<_>, _>>();
        pages.map(|pages| pages.len()).map_err(|error| (limits.exceeded().is_some(), error.to_string()))
    }

    #[test]
    fn a_page_is_refused_before_it_is_decompressed() {
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(GzipLevel::default()),
            Compression::BROTLI(BrotliLevel::default()),
            Compression::LZ4_RAW,
            Compression::ZSTD(ZstdLevel::default()),
        ] {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                let properties = WriterProperties::builder()
                    .set_compression(compression)
                    .set_writer_version(version)
                    .set_dictionary_enabled(false)
                    .set_encoding(Encoding::PLAIN)
                    .build();
                let bytes = written(vec!["x".repeat(1 << 20)], properties);
                assert_eq!(pages(&bytes, (1 << 20) + 100), Ok(1), "{compression:?}");
                let (is_exceeded, error) = pages(&bytes, 1 << 20).unwrap_err();
                assert!(is_exceeded && error.contains("more than the 1 MiB"), "{compression:?}: {error}");
            }
        }
    }

    #[test]
    fn the_values_of_a_dictionary_count() {
        let texts: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        let dictionary = written(texts, WriterProperties::default());
        assert_eq!(pages(&dictionary, 16_000 + 10_000), Ok(2));
        assert!(pages(&dictionary, 16_000).unwrap_err().0);
    }

    #[test]
    fn compressed_pages_do_not_hide_their_size() {
        for compression in [Compression::GZIP(GzipLevel::default()), Compression::BROTLI(BrotliLevel::default())] {
            let properties =
                WriterProperties::builder().set_compression(compression).set_dictionary_enabled(false).build();
            let mut bytes = written(vec!["x".repeat(100_000)], properties);
            // The page's size, 100004, as its header has it, becomes 50004.
            let (right, wrong) = (b"\x15\xc8\x9a\x0c\x15", b"\x15\xa8\x8d\x06\x15");
            let place = bytes.windows(right.len()).position(|window| window == right).unwrap();
            bytes[place..place + wrong.len()].copy_from_slice(wrong);
            let (_, error) = pages(&bytes, 1 << 30).unwrap_err();
            assert!(error.contains("decompresses to more than its header declares"), "{error}");
        }
    }

    #[test]
    fn page_headers_are_read_to_their_end() {
        // Of type 3, 2^21 bytes, and of these 5 + 6 of levels; then the size once more, which the decoder would go by.
        let header =
            b"\x15\x06\x15\x80\x80\x80\x02\x15\x02\x5c\x15\0\x15\0\x15\0\x15\0\x15\x0a\x15\x0c\x12\0\x05\x04\x0e\0";
        let read = PageHeader::read(&mut &header[..]).unwrap();
        assert_eq!((read.bytes, read.levels, read.is_plain, read.dictionary_values), (7, 11, true, 0));
        assert!(PageHeader::read(&mut &header[..header.len() - 1]).is_err());
        let deep = [0x1c; 100];
        assert_eq!(PageHeader::read(&mut &deep[..]).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    fn check_schema(schema: &str) -> (Result<(), ParquetError>, Option<String>) {
        let mut bytes = Vec::new();
        let schema = Arc::new(parse_message_type(schema).unwrap());
        SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap().close().unwrap();
        let limits = Limits::of_page(0);
        (limits.check_footer(&file(&bytes)), limits.exceeded().map(str::to_string))
    }

    #[test]
    fn a_schema_is_bounded() {
        let nested = |depth: usize| {
            let groups = "required group a { ".repeat(depth);
            check_schema(&format!("message m {{ {groups} required int32 x; {} }}", "}".repeat(depth))).0
        };
        nested(60).unwrap();
        nested(70).unwrap_err();
        let named = |columns: usize| {
            let group = "a".repeat(1 << 20);
            let columns: String = (0..columns).map(|column| format!("required int32 x{column}; ")).collect();
            check_schema(&format!("message m {{ required group {group} {{ {columns} }} required int32 y; }}"))
        };
        named(60).0.unwrap();
        assert!(named(65).1.unwrap().contains("names of its columns"));
    }

    #[test]
    fn a_footer_that_is_too_large_is_not_read() {
        let mut file = tempfile::tempfile().unwrap();
        file.seek(SeekFrom::Start(40 << 20)).unwrap();
        file.write_all(b"\x01\0\0\x02PAR1").unwrap();
        let limits = Limits::of_file(&file);
        limits.check_footer(&file).unwrap_err();
        assert!(limits.exceeded().unwrap().contains("32 MiB"));
    }
}
