//! Bounds the memory that a file may ask for: a page is allocated by what its header says, and a few bytes of it may unpack
//! to gigabytes.

use super::compact::{BOOL_TRUE, Compact, FieldHead, LIST, STRUCT};
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use parquet::basic::{Compression, Encoding, Type};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{ChunkReader, Length, SerializedPageReader};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What the pages of any file may take that are in memory at a time.
const PAGE_BYTES: u64 = 256 << 20;

/// What those of a larger file may take, in sizes of the file.
const MOST_TIMES: u64 = 10;

/// The largest footer. What is made of it is larger.
const FOOTER_BYTES: u64 = 32 << 20;

/// How deep columns may nest: the decoder goes down by recursion.
const MOST_NESTED: usize = 64;

/// The names of all columns with those of the columns they are in, of which the decoder makes copies.
const PATH_BYTES: u64 = 64 << 20;

/// A file asks for more than it may have.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TooMuch(String);

impl TooMuch {
    fn error(line: String) -> ParquetError {
        ParquetError::External(Box::new(Self(line)))
    }

    /// The reason, if an error is of this kind.
    pub(super) fn of(error: &ParquetError) -> Option<&Self> {
        match error {
            ParquetError::External(cause) => cause.downcast_ref(),
            _ => None,
        }
    }
}

fn damaged(what: &str) -> ParquetError {
    ParquetError::General(what.into())
}

/// Checks what the footer makes the decoder allocate.
///
/// # Errors
/// [`TooMuch`], or another error if there is no footer.
pub(super) fn check_footer(file: &mut File) -> Result<(), ParquetError> {
    const END_BYTES: u64 = 8;
    let length = Length::len(file);
    let start = length.checked_sub(END_BYTES).ok_or_else(|| damaged("the file is too short"))?;
    let mut end = [0; END_BYTES as usize];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut end)?;
    let size = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
    if size > start {
        return Err(damaged("the footer is longer than the file"));
    }
    if size > FOOTER_BYTES {
        return Err(TooMuch::error(format!("its footer is larger than {} MiB", FOOTER_BYTES >> 20)));
    }
    let mut footer = vec![0; size as usize];
    file.seek(SeekFrom::Start(start - size))?;
    file.read_exact(&mut footer)?;
    match path_bytes(&footer) {
        Some(bytes) if bytes > PATH_BYTES => {
            Err(TooMuch::error(format!("the names of its columns take more than {} MiB", PATH_BYTES >> 20)))
        }
        Some(_) => Ok(()),
        None => Err(damaged("the schema is damaged, or columns nest too deeply")),
    }
}

/// The bytes in the paths of all columns, by the schema in a footer: `FileMetaData` and `SchemaElement` of parquet.thrift.
fn path_bytes(footer: &[u8]) -> Option<u64> {
    // Of each group that is open, how many children are to come, and the length of its path.
    let mut open: Vec<(i64, u64)> = Vec::new();
    let mut all = 0_u64;
    Compact(footer).fields(|compact, field| {
        let FieldHead { id: 2, kind: LIST } = field else { return Some(false) };
        let (count, STRUCT) = compact.list()? else { return None };
        for _ in 0..count {
            let (mut name, mut children) = (0, 0);
            compact.fields(|compact, field| {
                match (field.id, field.kind) {
                    (4, super::compact::BINARY) => name = compact.binary()?.len() as u64,
                    (5, 5) => children = compact.signed()?,
                    _ => return Some(false),
                }
                Some(true)
            })?;
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
            if open.len() > MOST_NESTED {
                return None;
            }
        }
        Some(true)
    })?;
    Some(all)
}

/// What the pages of a file take that are in memory at a time.
pub(super) struct Memory {
    most: u64,
    used: AtomicU64,
}

impl Memory {
    /// For a file of so many bytes.
    pub(super) fn of_file(bytes: u64) -> Arc<Self> {
        Self::of_most(PAGE_BYTES.max(bytes.saturating_mul(MOST_TIMES)))
    }

    fn of_most(most: u64) -> Arc<Self> {
        Arc::new(Self { most, used: AtomicU64::new(0) })
    }

    fn check(&self, more: u64) -> Result<(), ParquetError> {
        if self.used.load(Ordering::Relaxed).saturating_add(more) <= self.most {
            return Ok(());
        }
        let most = self.most >> 20;
        Err(TooMuch::error(format!(
            "a page of it needs more than the {most} MiB that the pages of a file of this size may take; write it with \
             smaller pages"
        )))
    }

    fn take(&self, bytes: u64) -> Result<(), ParquetError> {
        self.check(bytes)?;
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The pages of a column, each of which is checked before memory is taken for it.
pub(super) struct Pages {
    pages: SerializedPageReader<Checked>,
    memory: Arc<Memory>,
    stored: Type,
    is_nullable: bool,
    has_prefixes: bool,
    /// What is taken for the dictionary, and for the current page.
    dictionary: u64,
    page: u64,
}

impl Pages {
    /// Those of a column whose values may be missing or not.
    pub(super) fn open(
        file: &Arc<File>,
        column: &ColumnChunkMetaData,
        is_nullable: bool,
        memory: &Arc<Memory>,
    ) -> Result<Self, ParquetError> {
        let (file, memory) = (Arc::clone(file), Arc::clone(memory));
        let checked =
            Checked { file, compression: column.compression(), memory: Arc::clone(&memory), head: Arc::default() };
        let pages = SerializedPageReader::new(Arc::new(checked), column, 0, None)?;
        let (stored, has_prefixes) = (column.column_type(), has_prefixes(column));
        Ok(Self { pages, memory, stored, is_nullable, has_prefixes, dictionary: 0, page: 0 })
    }

    /// What decoding a page takes beside its bytes.
    fn overhead(&self, page: &Page) -> Option<u64> {
        let values = u64::from(page.num_values());
        let streams = match page.encoding() {
            _ if page.is_dictionary_page() => {
                // Each value is made at once.
                let (least, size) = match self.stored {
                    Type::BYTE_ARRAY => (4, size_of::<ByteArray>()),
                    Type::INT32 | Type::FLOAT => (4, 4),
                    Type::INT64 | Type::DOUBLE => (8, 8),
                    _ => (1, size_of::<ByteArray>()),
                };
                return (values * least <= page.buffer().len() as u64).then_some(values * size as u64);
            }
            Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
            Encoding::DELTA_BYTE_ARRAY if self.has_prefixes => 2,
            Encoding::DELTA_BYTE_ARRAY => return None,
            _ => return Some(0),
        };
        // The lengths of all values are made at once.
        let mut stream = Compact(self.values(page)?);
        let mut lengths = 0;
        for _ in 0..streams {
            lengths += skip_deltas(&mut stream).filter(|count| *count <= values)?;
        }
        Some(lengths * size_of::<i32>() as u64)
    }

    /// The values of a page, behind its definition levels.
    fn values<'a>(&self, page: &'a Page) -> Option<&'a [u8]> {
        let buffer: &[u8] = page.buffer();
        let levels = match page {
            Page::DataPageV2 { def_levels_byte_len, rep_levels_byte_len, .. } => {
                (*def_levels_byte_len as usize).checked_add(*rep_levels_byte_len as usize)?
            }
            Page::DataPage { .. } if !self.is_nullable => 0,
            Page::DataPage { def_level_encoding: Encoding::RLE, .. } => {
                4 + u32::from_le_bytes(buffer.first_chunk().copied()?) as usize
            }
            _ => page.num_values().div_ceil(8) as usize,
        };
        buffer.get(levels..)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.memory.give_back(self.dictionary + self.page);
    }
}

/// Whether values may be stored as what they share with the one before, and the rest. Those that are decoded together can be
/// far larger than their page.
pub(super) fn has_prefixes(column: &ColumnChunkMetaData) -> bool {
    column.encodings().any(|encoding| encoding == Encoding::DELTA_BYTE_ARRAY)
}

/// Passes over numbers in `DELTA_BINARY_PACKED` and gives their count.
fn skip_deltas(stream: &mut Compact) -> Option<u64> {
    let (block, parts, count) = (stream.unsigned()?, stream.unsigned()?, stream.unsigned()?);
    stream.signed()?;
    let in_part = block.checked_div(parts)?;
    let mut left = count.saturating_sub(1);
    while left > 0 {
        stream.signed()?;
        for width in stream.take(parts)? {
            if left > 0 {
                stream.take(u64::from(*width).checked_mul(in_part)? / 8)?;
            }
            left = left.saturating_sub(in_part);
        }
    }
    Some(count)
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        let Some(page) = self.pages.get_next_page()? else { return Ok(None) };
        let overhead = self.overhead(&page).ok_or_else(|| damaged("a page does not hold what its header says"))?;
        let bytes = overhead.saturating_add(page.buffer().len() as u64);
        if page.is_dictionary_page() {
            self.memory.take(bytes)?;
            self.dictionary += bytes;
        } else {
            self.memory.give_back(std::mem::take(&mut self.page));
            self.memory.take(bytes)?;
            self.page = bytes;
        }
        Ok(Some(page))
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.pages.skip_next_page()
    }
}

impl Iterator for Pages {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

/// A file as the decoder reads the pages of a column: always a header and then a page, which is looked at in between.
struct Checked {
    file: Arc<File>,
    compression: Compression,
    memory: Arc<Memory>,
    /// The header that was read last.
    head: Arc<Mutex<Vec<u8>>>,
}

/// A page header that is being read.
struct Head {
    file: BufReader<File>,
    read: Arc<Mutex<Vec<u8>>>,
}

impl Read for Head {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.read.lock().unwrap_or_else(PoisonError::into_inner).extend(&buffer[..count]);
        Ok(count)
    }
}

impl Length for Checked {
    fn len(&self) -> u64 {
        Length::len(&*self.file)
    }
}

impl ChunkReader for Checked {
    type T = Head;

    fn get_read(&self, start: u64) -> Result<Head, ParquetError> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(Head { file: self.file.get_read(start)?, read: Arc::clone(&self.head) })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let head = Unpacked::of_head(&self.head.lock().unwrap_or_else(PoisonError::into_inner));
        let head = head.ok_or_else(|| damaged("a page header is damaged"))?;
        self.memory.check(head.bytes)?;
        let bytes = self.file.get_bytes(start, length)?;
        self.check_size(&head, &bytes)?;
        Ok(bytes)
    }
}

impl Checked {
    /// Checks that a page unpacks to what its header says, where the decoder only looks afterwards.
    fn check_size(&self, head: &Unpacked, page: &[u8]) -> Result<(), ParquetError> {
        let packed = page.get(head.levels as usize..).unwrap_or_default();
        let most = head.bytes.saturating_sub(head.levels);
        let unpacked: &mut dyn Read = match self.compression {
            _ if !head.is_compressed || most == 0 => return Ok(()),
            Compression::GZIP(_) => &mut MultiGzDecoder::new(packed),
            Compression::BROTLI(_) => &mut brotli::Decompressor::new(packed, 4096),
            _ => return Ok(()),
        };
        if io::copy(&mut unpacked.take(most + 1), &mut io::sink())? > most {
            return Err(damaged("a page unpacks to more than its header says"));
        }
        Ok(())
    }
}

/// What a page header says of the page's size.
#[derive(Debug, PartialEq)]
struct Unpacked {
    bytes: u64,
    /// Of these, levels that are not compressed.
    levels: u64,
    is_compressed: bool,
}

impl Unpacked {
    /// By `PageHeader` and `DataPageHeaderV2` of parquet.thrift.
    fn of_head(head: &[u8]) -> Option<Self> {
        let mut unpacked = Self { bytes: 0, levels: 0, is_compressed: true };
        let mut levels = [0; 2];
        Compact(head).fields(|compact, field| match (field.id, field.kind) {
            (2, 5) => {
                unpacked.bytes = compact.signed()?.try_into().ok()?;
                Some(true)
            }
            (8, STRUCT) => {
                compact.fields(|compact, field| match (field.id, field.kind) {
                    (5 | 6, 5) => {
                        levels[(field.id - 5) as usize] = compact.signed()?.try_into().ok()?;
                        Some(true)
                    }
                    (7, kind) => {
                        unpacked.is_compressed = kind == BOOL_TRUE;
                        Some(false)
                    }
                    _ => Some(false),
                })?;
                Some(true)
            }
            _ => Some(false),
        })?;
        unpacked.levels = levels.iter().sum();
        Some(unpacked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, RecordBatch, StringArray};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{BrotliLevel, GzipLevel, ZstdLevel};
    use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
    use parquet::file::properties::{WriterProperties, WriterVersion};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::io::Write;

    fn open(bytes: &[u8]) -> (Arc<File>, ParquetMetaData) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        check_footer(&mut file).unwrap();
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&file).unwrap();
        (Arc::new(file), metadata)
    }

    fn written(texts: Vec<String>, properties: WriterProperties) -> Vec<u8> {
        let batch = RecordBatch::try_from_iter([("prompt", Arc::new(StringArray::from(texts)) as ArrayRef)]).unwrap();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    }

    /// Reads all pages of the first column where so much memory may be taken.
    fn read(bytes: &[u8], most: u64) -> Result<usize, ParquetError> {
        let (file, metadata) = open(bytes);
        let memory = Memory::of_most(most);
        let mut pages = Pages::open(&file, metadata.row_group(0).column(0), false, &memory)?;
        let count = pages.by_ref().collect::<Result<Vec<_>, _>>()?.len();
        assert!(memory.used.load(Ordering::Relaxed) > 0);
        drop(pages);
        assert_eq!(memory.used.load(Ordering::Relaxed), 0, "all is given back");
        Ok(count)
    }

    #[test]
    fn a_page_is_refused_before_it_is_unpacked() {
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
                assert_eq!(read(&bytes, (1 << 20) + 100).unwrap(), 1, "{compression:?}");
                let error = read(&bytes, 1 << 20).unwrap_err();
                assert!(TooMuch::of(&error).is_some(), "{compression:?}: {error}");
            }
        }
    }

    #[test]
    fn what_is_made_of_a_page_counts() {
        let texts: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        let delta = |encoding| {
            let properties = WriterProperties::builder().set_dictionary_enabled(false).set_encoding(encoding).build();
            written(texts.clone(), properties)
        };
        // A dictionary of 1000 values is much larger than its page.
        let dictionary = written(texts.clone(), WriterProperties::default());
        assert_eq!(read(&dictionary, 1000 * size_of::<ByteArray>() as u64 + 10_000).unwrap(), 2);
        assert!(TooMuch::of(&read(&dictionary, 1000 * size_of::<ByteArray>() as u64).unwrap_err()).is_some());
        for (encoding, lengths) in [(Encoding::DELTA_LENGTH_BYTE_ARRAY, 1000), (Encoding::DELTA_BYTE_ARRAY, 2000)] {
            assert_eq!(read(&delta(encoding), lengths * 4 + 8_000).unwrap(), 1);
            assert!(TooMuch::of(&read(&delta(encoding), lengths * 4).unwrap_err()).is_some());
        }
    }

    #[test]
    fn counts_that_are_not_those_of_the_page_are_damage() {
        let (file, metadata) = open(&written(vec!["a".into()], WriterProperties::default()));
        let memory = Memory::of_file(0);
        let mut pages = Pages::open(&file, metadata.row_group(0).column(0), false, &memory).unwrap();
        let dictionary = |num_values| Page::DictionaryPage {
            buf: Bytes::from_static(&[0; 40]),
            num_values,
            encoding: Encoding::PLAIN,
            is_sorted: false,
        };
        assert_eq!(pages.overhead(&dictionary(10)), Some(10 * size_of::<ByteArray>() as u64));
        assert_eq!([pages.overhead(&dictionary(11)), pages.overhead(&dictionary(u32::MAX))], [None, None]);
        let page = |bytes: &'static [u8], encoding| Page::DataPage {
            buf: Bytes::from_static(bytes),
            num_values: 200,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let lengths = Encoding::DELTA_LENGTH_BYTE_ARRAY;
        // Blocks of 128 in 4 parts; 200 values in two blocks whose parts have widths of 0 bits.
        let sound = b"\x80\x01\x04\xc8\x01\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(pages.overhead(&page(sound, lengths)), Some(800));
        assert_eq!(pages.overhead(&page(&sound[..sound.len() - 1], lengths)), None);
        // One block for 2^62 values.
        let endless = b"\x80\x80\x80\x80\x80\x80\x80\x80\x40\x01\x80\x80\x80\x80\x80\x80\x80\x80\x40\0\0\0";
        assert_eq!(skip_deltas(&mut Compact(endless)), Some(1 << 62));
        assert_eq!(pages.overhead(&page(endless, lengths)), None);
        // No parts, and values with prefixes where the column is said to have none.
        assert_eq!(pages.overhead(&page(b"\x80\x01\0\x02\0", lengths)), None);
        assert_eq!(pages.overhead(&page(sound, Encoding::DELTA_BYTE_ARRAY)), None);
        pages.is_nullable = true;
        assert_eq!(pages.overhead(&page(b"\x02\0\0\0xx\x80\x01\x04\x01\0", lengths)), Some(4));
        assert_eq!(pages.overhead(&page(b"\xff\xff\xff\xff", lengths)), None);
    }

    #[test]
    fn packed_pages_do_not_hide_their_size() {
        let texts = || vec!["x".repeat(100_000)];
        for compression in [Compression::GZIP(GzipLevel::default()), Compression::BROTLI(BrotliLevel::default())] {
            let properties =
                WriterProperties::builder().set_compression(compression).set_dictionary_enabled(false).build();
            let bytes = written(texts(), properties);
            // The page's size, 100004, as its header has it, is made to be 50004.
            let (right, wrong) = (b"\x15\xc8\x9a\x0c\x15", b"\x15\xa8\x8d\x06\x15");
            let place = bytes.windows(right.len()).position(|window| window == right).unwrap();
            let mut bytes = bytes;
            bytes[place..place + wrong.len()].copy_from_slice(wrong);
            let error = read(&bytes, 1 << 30).unwrap_err();
            assert!(error.to_string().contains("unpacks to more than its header says"), "{error}");
        }
    }

    fn with_schema(schema: &str) -> Result<(), ParquetError> {
        let mut bytes = Vec::new();
        let schema = Arc::new(parse_message_type(schema).unwrap());
        SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap().close().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        check_footer(&mut file)
    }

    #[test]
    fn a_schema_is_bounded() {
        let nested = |depth: usize| {
            let groups = "required group a { ".repeat(depth);
            with_schema(&format!("message m {{ {groups} required int32 x; {} }}", "}".repeat(depth)))
        };
        nested(60).unwrap();
        assert!(nested(70).unwrap_err().to_string().contains("nest too deeply"));
        let named = |columns: usize| {
            let group = "a".repeat(1 << 20);
            let columns: String = (0..columns).map(|column| format!("required int32 x{column}; ")).collect();
            with_schema(&format!("message m {{ required group {group} {{ {columns} }} required int32 y; }}"))
        };
        named(60).unwrap();
        assert!(TooMuch::of(&named(65).unwrap_err()).is_some());
    }

    #[test]
    fn a_footer_that_is_too_large_is_not_read() {
        let mut file = tempfile::tempfile().unwrap();
        file.seek(SeekFrom::Start(40 << 20)).unwrap();
        file.write_all(b"\x01\0\0\x02PAR1").unwrap();
        assert!(TooMuch::of(&check_footer(&mut file).unwrap_err()).unwrap().to_string().contains("32 MiB"));
    }
}
