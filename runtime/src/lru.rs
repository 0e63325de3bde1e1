//! A small map that forgets what was not used for longest.

/// At most `capacity` entries, the most recently used last.
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    capacity: usize,
    entries: Vec<(K, V)>,
}

impl<K: PartialEq, V> Lru<K, V> {
    pub fn new(capacity: usize) -> Self {
        Lru { capacity: capacity.max(1), entries: Vec::new() }
    }

    /// The entry of `key`, made if it is not there. The least recently used one makes room first, so that there are
    /// never more than `capacity` in memory.
    pub fn get_or_try_insert<E>(&mut self, key: K, make: impl FnOnce(&K) -> Result<V, E>) -> Result<&mut V, E> {
        match self.entries.iter().position(|(known, _)| *known == key) {
            Some(at) => {
                let entry = self.entries.remove(at);
                self.entries.push(entry);
            }
            None => {
                if self.entries.len() >= self.capacity {
                    self.entries.remove(0);
                }
                let value = make(&key)?;
                self.entries.push((key, value));
            }
        }
        Ok(self.entries.last_mut().map(|(_, value)| value).expect("an entry was moved or added"))
    }

    /// Forgets the entries whose key is not kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.entries.retain(|(key, _)| keep(key));
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }

    #[cfg(test)]
    fn keys(&self) -> Vec<&K> {
        self.entries.iter().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut lru = Lru::new(2);
        let mut made = Vec::new();
        for key in [1, 2, 1, 3, 1, 2] {
            let value = lru
                .get_or_try_insert(key, |key| {
                    made.push(*key);
                    Ok::<_, ()>(key * 10)
                })
                .unwrap();
            assert_eq!(*value, key * 10);
        }
        assert_eq!(made, [1, 2, 3, 2]);
        assert_eq!(lru.keys(), [&1, &2]);
        assert_eq!(lru.get_or_try_insert(9, |_| Err("no")), Err("no"));
        lru.clear();
        assert!(lru.keys().is_empty());
    }
}
