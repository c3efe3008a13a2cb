//! Embeddings that were computed before: the least recently used ones make way.

use super::row::{Embedding, RowKey};
use std::collections::{BTreeMap, HashMap};

/// Bytes of an entry beside its numbers: its key in two maps, and what these and the allocator add.
const ENTRY_BYTES: usize = 256;

/// A cache of bounded size.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<RowKey, Entry>,
    /// The keys, by when they were last used.
    by_use: BTreeMap<u64, RowKey>,
    /// The number of uses so far.
    uses: u64,
    bytes: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct Entry {
    embedding: Embedding,
    last_use: u64,
}

impl Cache {
    /// A cache of at most so many bytes; of 0, one that keeps nothing.
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, ..Self::default() }
    }

    /// Whether it keeps anything.
    pub(super) fn is_on(&self) -> bool {
        self.max_bytes > 0
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// An embedding, which is then the most recently used one.
    pub(super) fn get(&mut self, key: &RowKey) -> Option<Embedding> {
        let entry = self.entries.get_mut(key)?;
        self.by_use.remove(&entry.last_use);
        self.uses += 1;
        entry.last_use = self.uses;
        self.by_use.insert(self.uses, *key);
        Some(Embedding::clone(&entry.embedding))
    }

    /// Keeps an embedding, if it is not larger than the cache.
    pub(super) fn put(&mut self, key: RowKey, embedding: Embedding) {
        let bytes = bytes_of(&embedding);
        if bytes > self.max_bytes || self.get(&key).is_some() {
            return;
        }
        self.bytes += bytes;
        while self.bytes > self.max_bytes
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.bytes -= self.entries.remove(&oldest).map_or(0, |entry| bytes_of(&entry.embedding));
        }
        self.uses += 1;
        self.by_use.insert(self.uses, key);
        self.entries.insert(key, Entry { embedding, last_use: self.uses });
    }
}

fn bytes_of(embedding: &Embedding) -> usize {
    ENTRY_BYTES + size_of_val(&**embedding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> RowKey {
        [number; 32]
    }

    fn embedding(number: u8) -> Embedding {
        vec![f32::from(number); 16].into()
    }

    #[test]
    fn the_least_recently_used_one_makes_way() {
        let of_three = 3 * (ENTRY_BYTES + 64);
        let mut cache = Cache::new(of_three);
        for number in [1, 2, 3] {
            cache.put(key(number), embedding(number));
        }
        assert_eq!(cache.get(&key(1)), Some(embedding(1)));
        cache.put(key(2), embedding(2));
        cache.put(key(4), embedding(4));
        let kept: Vec<u8> = (0..6).filter(|number| cache.entries.contains_key(&key(*number))).collect();
        assert_eq!((kept.as_slice(), cache.bytes()), (&[1, 2, 4][..], of_three));
        assert_eq!(cache.entries.len(), cache.by_use.len());
        assert_eq!(cache.get(&key(3)), None);
    }

    #[test]
    fn it_never_grows_beyond_its_size() {
        let mut cache = Cache::new(5 * (ENTRY_BYTES + 64) + 7);
        for number in 0..=u8::MAX {
            cache.put(key(number), embedding(number));
            cache.get(&key(number / 2));
            assert!(cache.bytes() <= cache.max_bytes && cache.entries.len() <= 5);
        }
        cache.put(key(7), vec![0.0; 100_000].into());
        assert_eq!(cache.get(&key(7)), None);
        let mut off = Cache::new(0);
        off.put(key(1), embedding(1));
        assert!(!off.is_on() && off.get(&key(1)).is_none() && off.bytes() == 0);
    }
}
