use std::thread;

use inlay_format::record::{
    self, BaseId, Dtype, LORA_KIND, PartHeader, PartValues, PointValues, RecordError, TensorValues,
};
use inlay_format::state::{self, ADAMW, StateError};
use tempfile::TempDir;

use super::*;

fn store() -> (TempDir, AdapterStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = AdapterStore::open(folder.path().join("a/b")).unwrap();
    (folder, store)
}

/// A record whose values are `value`.
fn record(value: f32) -> Vec<u8> {
    let header = PartHeader { kind: LORA_KIND, dtype: Dtype::F32, rslora: false, rank: 1, alpha: 1.0 };
    let (a, b) = ([value; 50], [value; 7]);
    let tensors = [&a[..], &b].map(|values| TensorValues { values, groups: 1 });
    let mut parts = [PartValues { header, points: &mut [PointValues { path: "fc1", tensors: &tensors }] }];
    let mut bytes = vec![0; record::encoded_len(&parts).unwrap()];
    record::encode(BaseId([0; 16]), &mut parts, &mut bytes).unwrap();
    bytes
}

fn checksum(record: &[u8]) -> RecordChecksum {
    Record::decode(record).unwrap().checksum()
}

fn state_of(record: &[u8]) -> Vec<u8> {
    let header = state::Header { record: checksum(record), optimizer: ADAMW, step: 3, seed: 1 };
    let arrays: [&[&[f32]]; 1] = [&[&[0.5; 57]]];
    let mut bytes = vec![0; state::encoded_len(&header, &arrays).unwrap()];
    state::encode(&header, &arrays, &mut bytes).unwrap();
    bytes
}

fn files(store: &AdapterStore) -> Vec<String> {
    let mut files: Vec<String> = fs::read_dir(store.dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|file| file != LOCK_FILE)
        .collect();
    files.sort();
    files
}

#[test]
fn save_load_list_delete() {
    let (_folder, store) = store();
    assert!(store.list().unwrap().is_empty());
    for (user, value) in [("anna", 1.0), ("Anna", 2.0), ("../..", 3.0), ("anna", 4.0)] {
        store.save(user, &record(value)).unwrap();
        assert_eq!(store.load(user).unwrap(), record(value));
    }
    assert_eq!(store.list().unwrap(), ["../..", "Anna", "anna"]);
    let reopened = AdapterStore::open_existing(store.dir()).unwrap();
    assert_eq!(reopened.load("Anna").unwrap(), record(2.0));
    store.delete("Anna").unwrap();
    assert_eq!(store.list().unwrap(), ["../..", "anna"]);
    assert_eq!(store.load_if_any("Anna").unwrap(), None);
    assert_eq!(files(&store), ["%2e%2e%2f%2e%2e.adapter", "anna.adapter", "anna.previous"]);
}

#[test]
fn what_is_not_there_is_named() {
    let (folder, store) = store();
    store.save("anna", &record(1.0)).unwrap();
    for missing in [store.load("ben").unwrap_err(), store.delete("ben").unwrap_err()] {
        assert!(matches!(missing, StoreError::NoAdapter { .. }), "{missing}");
        assert!(missing.to_string().contains("\"ben\"") && missing.to_string().ends_with("it holds \"anna\""));
    }
    let nowhere = AdapterStore::open_existing(folder.path().join("nowhere")).unwrap_err();
    assert!(matches!(nowhere, StoreError::NoStore { .. }), "{nowhere}");
    assert!(!folder.path().join("nowhere").exists());
    fs::write(folder.path().join("file"), "").unwrap();
    for opened in [AdapterStore::open(folder.path().join("file")), AdapterStore::open(folder.path().join("file/x"))] {
        assert!(matches!(opened, Err(StoreError::Io { .. })), "{opened:?}");
    }
}

#[test]
fn damaged_records_are_refused_by_file() {
    let (_folder, store) = store();
    store.save("anna", &record(1.0)).unwrap();
    let path = store.path_of("anna").unwrap();
    let whole = fs::read(&path).unwrap();
    for (damaged, cut) in [(&whole[..100], true), (&[], true), (&[&whole[..], &[0]].concat(), false)] {
        fs::write(&path, damaged).unwrap();
        let refused = store.load("anna").unwrap_err();
        assert!(refused.to_string().contains(path.to_str().unwrap()), "{refused}");
        match refused {
            StoreError::Record { source: RecordError::Truncated { .. }, .. } => assert!(cut),
            StoreError::Record { source: RecordError::TrailingBytes { .. }, .. } => assert!(!cut),
            other => panic!("{other}"),
        }
    }
    // The way out of a damaged file: a new record.
    store.save("anna", &record(2.0)).unwrap();
    assert_eq!(store.load("anna").unwrap(), record(2.0));
}

#[test]
fn what_is_not_a_record_is_not_saved() {
    let (_folder, store) = store();
    store.save("anna", &record(1.0)).unwrap();
    let mut altered = record(2.0);
    altered[60] ^= 1;
    for bytes in [&altered[..], &altered[..50], b"hello"] {
        assert!(matches!(store.save("anna", bytes), Err(StoreError::NotSaved { .. })));
    }
    assert_eq!(store.load("anna").unwrap(), record(1.0));
}

#[test]
fn saving_over_what_changed_is_refused() {
    let (_folder, store) = store();
    store.save_over("anna", &record(1.0), None).unwrap();
    assert!(matches!(store.save_over("anna", &record(2.0), None), Err(StoreError::Changed { .. })));
    store.save_over("anna", &record(2.0), Some(checksum(&record(1.0)))).unwrap();
    let refused = store.save_over("anna", &record(3.0), Some(checksum(&record(1.0)))).unwrap_err();
    match refused {
        StoreError::Changed { expected, found, .. } => {
            assert_eq!(expected, Some(checksum(&record(1.0))));
            assert_eq!(found, Some(checksum(&record(2.0))));
        }
        other => panic!("{other}"),
    }
    assert_eq!(store.load("anna").unwrap(), record(2.0));
}

#[test]
fn states_belong_to_one_record() {
    let (_folder, store) = store();
    let (old, new) = (record(1.0), record(2.0));
    assert!(matches!(store.save_state("anna", &state_of(&old)), Err(StoreError::NoAdapter { .. })));
    store.save("anna", &old).unwrap();
    assert_eq!(store.load_state("anna").unwrap(), None);
    store.save_state("anna", &state_of(&old)).unwrap();
    assert_eq!(store.load_state("anna").unwrap(), Some(state_of(&old)));
    let refused = store.save_state("anna", &state_of(&new)).unwrap_err();
    assert!(matches!(refused, StoreError::State { source: StateError::OtherRecord { .. }, .. }), "{refused}");
    store.save("anna", &new).unwrap();
    assert_eq!(store.load_state("anna").unwrap(), None, "the state outlived its record");

    // As a crash between the record and the removal of its state would leave it.
    let orphan = store.dir().join("ben.state");
    let stale = store.dir().join("anna.state");
    fs::write(&orphan, state_of(&old)).unwrap();
    fs::write(&stale, state_of(&old)).unwrap();
    assert_eq!(store.load_state("anna").unwrap(), None, "a state of another record");
    assert_eq!(store.sweep().unwrap(), 2);
    assert!(!orphan.exists() && !stale.exists());
    // What is whole and belongs to its record stays, and so does what cannot be judged.
    store.save_state("anna", &state_of(&new)).unwrap();
    store.save("carl", &old).unwrap();
    fs::write(store.dir().join("carl.state"), "x").unwrap();
    assert!(matches!(store.load_state("carl"), Err(StoreError::State { .. })));
    assert_eq!(store.sweep().unwrap(), 0);
    assert_eq!(store.load_state("anna").unwrap(), Some(state_of(&new)));
    store.delete("carl").unwrap();
    store.delete("anna").unwrap();
    assert!(files(&store).is_empty());
}

#[test]
fn the_record_before_comes_back() {
    let (_folder, store) = store();
    store.save("anna", &record(1.0)).unwrap();
    assert!(matches!(store.rollback("anna"), Err(StoreError::NoPrevious { .. })));
    assert_eq!(store.load_previous("anna").unwrap(), None);
    store.save("anna", &record(2.0)).unwrap();
    // The same again is no new generation.
    store.save("anna", &record(2.0)).unwrap();
    store.save_state("anna", &state_of(&record(2.0))).unwrap();
    assert_eq!(store.load_previous("anna").unwrap(), Some(record(1.0)));
    for expected in [1.0, 2.0, 1.0] {
        store.rollback("anna").unwrap();
        assert_eq!(store.load("anna").unwrap(), record(expected));
        assert_eq!(store.load_previous("anna").unwrap(), Some(record(3.0 - expected)));
        assert_eq!(store.load_state("anna").unwrap(), None, "a state of another record");
    }
    // What is damaged is not kept, neither by a rollback nor by a save.
    store.rollback("anna").unwrap();
    fs::write(store.path_of("anna").unwrap(), "x").unwrap();
    store.rollback("anna").unwrap();
    assert_eq!(store.load("anna").unwrap(), record(1.0));
    fs::write(store.path_of("anna").unwrap(), "x").unwrap();
    store.save("anna", &record(3.0)).unwrap();
    assert_eq!(store.load_previous("anna").unwrap(), Some(record(1.0)));
    store.delete("anna").unwrap();
    assert!(files(&store).is_empty());
}

#[test]
fn a_user_has_several_adapters_by_name() {
    let (_folder, store) = store();
    let ids: [AdapterId; 4] = ["anna".into(), ("anna", "work").into(), ("anna", "../work").into(), "anna.work".into()];
    for (value, id) in ids.iter().enumerate() {
        store.save(id, &record(value as f32)).unwrap();
    }
    assert_eq!(store.list().unwrap(), ["anna", "anna.work"]);
    assert_eq!(store.adapters().unwrap(), [&ids[0], &ids[2], &ids[1], &ids[3]].map(Clone::clone));
    for (value, id) in ids.iter().enumerate() {
        assert_eq!(store.load(id).unwrap(), record(value as f32));
    }
    store.delete(("anna", "work")).unwrap();
    let refused = store.load(("anna", "work")).unwrap_err().to_string();
    assert!(refused.starts_with("no adapter \"work\" of \"anna\" in "), "{refused}");
    assert!(refused.ends_with("it holds \"anna\", \"anna\" (\"../work\"), \"anna.work\""), "{refused}");
    assert_eq!(store.load("anna").unwrap(), record(0.0));
}

#[test]
fn adapters_leave_and_enter_as_files() {
    let (folder, store) = store();
    let file = folder.path().join("anna.adapter");
    store.save("anna", &record(1.0)).unwrap();
    store.export("anna", &file).unwrap();
    assert_eq!(fs::read(&file).unwrap(), record(1.0));
    assert!(matches!(store.export("anna", &file), Err(StoreError::Exists { .. })));
    store.import(("ben", "copy"), &file).unwrap();
    assert_eq!(store.load(("ben", "copy")).unwrap(), record(1.0));
    fs::write(&file, "x").unwrap();
    assert!(matches!(store.import("ben", &file), Err(StoreError::NotSaved { .. })));
    let nowhere = folder.path().join("nowhere");
    assert!(matches!(store.import("ben", nowhere), Err(StoreError::Io { action: Action::Read, .. })));
}

fn sealed_as(refused: StoreError) -> SealError {
    match refused {
        StoreError::Sealed { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[test]
fn encrypted_stores_do_all_that_others_do() {
    let (folder, plain) = store();
    let key = |byte| StoreKey::new([byte; 32]);
    let store = plain.clone().with_key(key(1));
    store.save("anna", &record(1.0)).unwrap();
    store.save_over("anna", &record(2.0), Some(checksum(&record(1.0)))).unwrap();
    store.save_state("anna", &state_of(&record(2.0))).unwrap();
    assert_eq!(store.load_state("anna").unwrap(), Some(state_of(&record(2.0))));
    assert_eq!(files(&store), ["anna.adapter", "anna.previous", "anna.state"]);
    for file in files(&store) {
        let bytes = fs::read(store.dir().join(file)).unwrap();
        assert!(bytes.starts_with(b"INLX\x01") && !bytes.windows(4).any(|window| window == b"INLA"));
    }
    store.rollback("anna").unwrap();
    assert_eq!(store.load("anna").unwrap(), record(1.0));
    let file = folder.path().join("anna.adapter");
    store.export("anna", &file).unwrap();
    assert_eq!(fs::read(&file).unwrap(), record(1.0));

    // Another key, or none, neither reads nor overwrites.
    let other = plain.clone().with_key(key(2));
    for (store, expected) in [(&other, SealError::WrongKey), (&plain, SealError::KeyNeeded)] {
        let refused = [store.load("anna").map(drop), store.save("anna", &record(9.0)), store.rollback("anna")];
        for refused in refused {
            assert_eq!(sealed_as(refused.unwrap_err()), expected);
        }
    }
    // Nor does a key read what is not encrypted.
    plain.save("ben", &record(3.0)).unwrap();
    assert_eq!(sealed_as(store.load("ben").unwrap_err()), SealError::NotSealed);
    assert_eq!(sealed_as(store.save("ben", &record(4.0)).unwrap_err()), SealError::NotSealed);
    assert_eq!(store.load("anna").unwrap(), record(1.0));
}

#[test]
fn encrypted_files_are_bound_to_their_place() {
    let (_folder, store) = store();
    let store = store.with_key(StoreKey::new([1; 32]));
    store.save("anna", &record(1.0)).unwrap();
    store.save("anna", &record(2.0)).unwrap();
    let anna = store.path_of("anna").unwrap();
    for to in [store.path_of("ben").unwrap(), store.path_of(("anna", "work")).unwrap()] {
        fs::copy(&anna, to).unwrap();
    }
    for id in [AdapterId::from("ben"), ("anna", "work").into()] {
        assert_eq!(sealed_as(store.load(&id).unwrap_err()), SealError::Altered);
        // The way out of a damaged file: a new record.
        store.save(&id, &record(3.0)).unwrap();
        assert_eq!(store.load(&id).unwrap(), record(3.0));
    }
    fs::copy(store.dir().join("anna.previous"), &anna).unwrap();
    assert_eq!(sealed_as(store.load("anna").unwrap_err()), SealError::Altered);
    store.rollback("anna").unwrap();
    assert_eq!(store.load("anna").unwrap(), record(1.0));
}

#[test]
fn leftovers_are_swept_and_strangers_kept() {
    let (_folder, store) = store();
    store.save("anna", &record(1.0)).unwrap();
    for file in ["0.tmp", "1.tmp", "notes.tmp", "README"] {
        fs::write(store.dir().join(file), "x").unwrap();
    }
    // A live writer's file is not a leftover.
    let writing = store.lock().unwrap();
    AdapterStore::open(store.dir()).unwrap();
    assert!(files(&store).contains(&"0.tmp".into()));
    drop(writing);
    AdapterStore::open(store.dir()).unwrap();
    assert_eq!(files(&store), ["README", "anna.adapter", "notes.tmp"]);
    assert_eq!(store.list().unwrap(), ["anna"]);
}

#[test]
fn a_leftover_does_not_stop_the_next_save() {
    let (_folder, store) = store();
    fs::write(store.dir().join("0.tmp"), "x").unwrap();
    store.save("anna", &record(1.0)).unwrap();
    assert_eq!(files(&store), ["anna.adapter"]);
}

#[test]
fn a_failed_save_leaves_nothing_behind() {
    let (_folder, store) = store();
    // A folder where the record before should be: the rename fails, after the temporary files were written.
    store.save("anna", &record(1.0)).unwrap();
    fs::create_dir(store.dir().join("anna.previous")).unwrap();
    let refused = store.save("anna", &record(2.0)).unwrap_err();
    assert!(matches!(refused, StoreError::Io { action: Action::Rename, .. }), "{refused}");
    assert_eq!(files(&store), ["anna.adapter", "anna.previous"]);
    assert_eq!(store.load("anna").unwrap(), record(1.0));
}

#[test]
fn writers_take_turns_and_readers_see_whole_records() {
    let (_folder, store) = store();
    store.save("anna", &record(0.0)).unwrap();
    let (store, whole) = (&store, [0, 1, 2, 3].map(|value| record(value as f32)));
    let whole = &whole;
    thread::scope(|scope| {
        for writer in whole {
            scope.spawn(move || (0..25).for_each(|_| store.save("anna", writer).unwrap()));
        }
        scope.spawn(move || (0..200).for_each(|_| assert!(whole.contains(&store.load("anna").unwrap()))));
    });
    assert_eq!(files(store), ["anna.adapter", "anna.previous"]);
    assert!(whole.contains(&store.load_previous("anna").unwrap().unwrap()));
}

#[test]
fn concurrent_read_modify_write_loses_nothing() {
    const EACH: usize = 20;
    let (_folder, store) = store();
    store.save("count", &record(0.0)).unwrap();
    let count = |record: &[u8]| {
        let record = Record::decode(record).unwrap();
        record.parts().next().unwrap().point("fc1").unwrap().tensors().next().unwrap().values().next().unwrap()
    };
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut done = 0;
                while done < EACH {
                    let old = store.load("count").unwrap();
                    match store.save_over("count", &record(count(&old) + 1.0), Some(checksum(&old))) {
                        Ok(()) => done += 1,
                        Err(StoreError::Changed { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
    });
    assert_eq!(count(&store.load("count").unwrap()), (3 * EACH) as f32);
}

#[cfg(unix)]
#[test]
fn files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, store) = store();
    store.save("anna", &record(1.0)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&store.path_of("anna").unwrap()) & 0o077, 0);
    assert_eq!(mode(store.dir()) & 0o077, 0);
}
