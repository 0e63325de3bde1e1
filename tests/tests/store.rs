//! The adapter store against processes that are killed, disks that are full and disks that cannot be written.
//!
//! The process that is killed is this test binary again, running one of its ignored tests. What needs the kernel's leave
//! (a private mount, tracing) says loudly what was not tested where it is not given.

#![cfg(target_os = "linux")]
#![expect(clippy::print_stdout, reason = "the processes that are killed report what they saved")]

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use inlay_format::record::{self, BaseId, Dtype, LORA_KIND, PartHeader, PartValues, PointValues, Record, TensorValues};
use inlay_runtime::store::{Action, AdapterStore, StoreError};

const USER: &str = "anna";
/// The store's folder, for the ignored tests.
const STORE_DIR: &str = "INLAY_TEST_STORE";
const SIGKILL: i32 = 9;

/// A record of about 4 KiB whose values are `value`.
fn record(value: f32) -> Vec<u8> {
    let header = PartHeader { kind: LORA_KIND, dtype: Dtype::F32, rslora: false, rank: 1, alpha: 1.0 };
    let values = [value; 1000];
    let tensors = [TensorValues { values: &values, groups: 1 }];
    let mut parts = [PartValues { header, points: &mut [PointValues { path: "fc1", tensors: &tensors }] }];
    let mut bytes = vec![0; record::encoded_len(&parts).unwrap()];
    record::encode(BaseId([0; 16]), &mut parts, &mut bytes).unwrap();
    bytes
}

/// The value that the stored record was made of. Fails unless it is whole.
fn stored(store: &AdapterStore) -> f32 {
    let bytes = store.load(USER).unwrap();
    let part = Record::decode(&bytes).unwrap().parts().next().unwrap();
    let value = part.point("fc1").unwrap().tensors().next().unwrap().values().next().unwrap();
    assert_eq!(bytes, record(value));
    value
}

fn temporaries(dir: &Path) -> usize {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".tmp")).count()
}

/// Arguments that make this binary run its ignored test `name`.
fn child(name: &str) -> [&str; 4] {
    ["--exact", name, "--ignored", "--nocapture"]
}

fn not_tested(what: &str, why: &str) {
    eprintln!("NOT TESTED: {what}: {why}");
}

#[test]
#[ignore = "runs as another process"]
fn child_saves_until_killed() {
    let store = AdapterStore::open(env::var_os(STORE_DIR).unwrap()).unwrap();
    for value in 1.. {
        store.save(USER, &record(value as f32)).unwrap();
        println!("saved {value}");
    }
}

#[test]
fn what_was_saved_survives_a_killed_writer() {
    let folder = tempfile::tempdir().unwrap();
    let mut leftovers = 0;
    for acknowledged in 1..=20 {
        let dir = folder.path().join(acknowledged.to_string());
        let mut writer = Command::new(env::current_exe().unwrap())
            .args(child("child_saves_until_killed"))
            .env(STORE_DIR, &dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines().map(Result::unwrap);
        let last = lines.filter(|line| line.contains("saved ")).nth(acknowledged - 1).expect("the writer goes on");
        writer.kill().unwrap();
        writer.wait().unwrap();
        assert!(last.ends_with(&format!("saved {acknowledged}")), "{last}");

        leftovers += temporaries(&dir);
        let store = AdapterStore::open(&dir).unwrap();
        assert!(stored(&store) >= acknowledged as f32, "an acknowledged save was lost");
        assert_eq!(temporaries(&dir), 0, "leftovers of the killed writer");
        store.save(USER, &record(0.5)).unwrap();
    }
    eprintln!("{leftovers} of 20 killed writers left a temporary file");
}

#[test]
#[ignore = "runs as another process"]
fn child_saves_once() {
    let store = AdapterStore::open(env::var_os(STORE_DIR).unwrap()).unwrap();
    match store.save(USER, &record(2.0)) {
        Ok(()) => println!("saved"),
        Err(StoreError::Io { action, source, .. }) => println!("refused {action:?} {:?}", source.kind()),
        Err(other) => panic!("{other}"),
    }
}

/// Runs `child_saves_once` over a store that holds record 1, with `inject` done to its calls on the store's files.
fn save_under_strace(dir: &Path, inject: &str) -> io::Result<Output> {
    let file = dir.join(format!("{USER}.adapter"));
    let temporary = dir.join(format!("{USER}.adapter.tmp"));
    Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", &format!("inject={inject}")])
        .args([Path::new("-P"), dir, Path::new("-P"), &file, Path::new("-P"), &temporary])
        .arg(env::current_exe()?)
        .args(child("child_saves_once"))
        .env(STORE_DIR, dir)
        .output()
}

/// Why this machine cannot trace, if it cannot.
fn strace_missing() -> Option<String> {
    match Command::new("strace").args(["-o", "/dev/null", "true"]).output() {
        Ok(traced) if traced.status.success() => None,
        Ok(traced) => Some(String::from_utf8_lossy(&traced.stderr).into_owned()),
        Err(error) => Some(format!("strace: {error}; install it")),
    }
}

#[test]
fn a_crash_at_any_system_call_leaves_the_old_record_or_the_new() {
    if let Some(why) = strace_missing() {
        return not_tested("crashes at every system call", &why);
    }
    let mut crashes = [0, 0];
    for call in ["openat", "write", "fsync", "rename", "renameat2", "unlink", "close"] {
        for nth in 1.. {
            let folder = tempfile::tempdir().unwrap();
            let store = AdapterStore::open(folder.path()).unwrap();
            store.save(USER, &record(1.0)).unwrap();
            let traced = save_under_strace(store.dir(), &format!("{call}:signal=KILL:when={nth}")).unwrap();
            if traced.status.signal() != Some(SIGKILL) {
                let output = String::from_utf8_lossy(&traced.stdout);
                assert!(output.contains("saved"), "{call} {nth}: {output}");
                break;
            }
            let store = AdapterStore::open(folder.path()).unwrap();
            match stored(&store) {
                1.0 => crashes[0] += 1,
                2.0 => crashes[1] += 1,
                other => panic!("killed at {call} {nth}: record {other}"),
            }
            assert_eq!(temporaries(store.dir()), 0, "killed at {call} {nth}");
        }
    }
    eprintln!("{} crashes left the old record, {} the new one", crashes[0], crashes[1]);
    assert!(crashes[0] >= 5 && crashes[1] >= 2, "the crashes missed the save: {crashes:?}");
}

#[test]
fn a_disk_that_fails_leaves_the_old_record() {
    if let Some(why) = strace_missing() {
        return not_tested("failing writes, syncs and renames", &why);
    }
    for (inject, expected) in [
        ("write:error=ENOSPC:when=1", "refused Write StorageFull"),
        ("write:error=EIO:when=1", "refused Write"),
        ("fsync:error=EIO:when=1", "refused Sync"),
        ("rename:error=EIO:when=1", "refused Rename"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = AdapterStore::open(folder.path()).unwrap();
        store.save(USER, &record(1.0)).unwrap();
        let traced = save_under_strace(store.dir(), inject).unwrap();
        let output = String::from_utf8_lossy(&traced.stdout);
        assert!(output.contains(expected), "{inject}: {output}{}", String::from_utf8_lossy(&traced.stderr));
        assert_eq!(stored(&store), 1.0, "{inject}");
        assert_eq!(temporaries(store.dir()), 0, "{inject}: a failed save cleans up");
    }
}

/// Runs `script` with a private mount namespace, `$DIR` an empty folder and `run NAME` running the ignored test NAME with
/// the store in `$DIR`. Returns why it cannot, if this machine does not give leave.
fn with_private_mounts(script: &str) -> Result<Output, String> {
    let folder = tempfile::tempdir().unwrap();
    let script =
        format!("set -e\nrun() {{ {STORE_DIR}=\"$DIR\" \"$EXE\" --exact \"$1\" --ignored --nocapture; }}\n{script}");
    let mut why = String::new();
    for namespaces in ["--mount", "-rm"] {
        let leave = Command::new("unshare")
            .args([namespaces, "sh", "-c", "mount -t tmpfs -o size=64k none \"$DIR\""])
            .env("DIR", folder.path())
            .output();
        match leave {
            Ok(output) if output.status.success() => {
                let mut command = Command::new("unshare");
                command.args([namespaces, "sh", "-c", &script]);
                command.env("DIR", folder.path()).env("EXE", env::current_exe().unwrap());
                return Ok(command.output().unwrap());
            }
            Ok(output) => why = String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => why = format!("unshare: {error}"),
        }
    }
    Err(why)
}

fn assert_passed(output: &Output) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn a_full_disk_leaves_the_old_record() {
    let script = "mount -t tmpfs -o size=16k none \"$DIR\"\nrun child_fills_the_disk";
    match with_private_mounts(script) {
        Ok(output) => assert_passed(&output),
        Err(why) => not_tested("a full disk", &why),
    }
}

#[test]
#[ignore = "runs as another process"]
fn child_fills_the_disk() {
    let store = AdapterStore::open(env::var_os(STORE_DIR).unwrap()).unwrap();
    store.save(USER, &record(1.0)).unwrap();
    let mut others = 0;
    let refused = loop {
        match store.save(&format!("other-{others}"), &record(2.0)) {
            Ok(()) => others += 1,
            Err(error) => break error,
        }
    };
    let full = |error: &StoreError| match error {
        StoreError::Io { action: Action::Write, source, .. } => source.kind() == io::ErrorKind::StorageFull,
        _ => false,
    };
    assert!(full(&refused), "{refused:?}");
    let refused = store.save(USER, &record(3.0)).unwrap_err();
    assert!(full(&refused), "{refused:?}");
    assert!(refused.to_string().contains("free some space"), "{refused}");
    assert_eq!(stored(&store), 1.0);
    assert_eq!(temporaries(store.dir()), 0);
    assert_eq!(store.list().unwrap().len(), 1 + others);
    // The way out works.
    store.delete("other-0").unwrap();
    store.save(USER, &record(4.0)).unwrap();
    assert_eq!(stored(&store), 4.0);
}

#[test]
fn a_read_only_store_can_be_read() {
    let script = "mount -t tmpfs -o size=64k none \"$DIR\"\nrun child_saves_once\n\
                  mount -o remount,ro \"$DIR\"\nrun child_reads_only";
    match with_private_mounts(script) {
        Ok(output) => assert_passed(&output),
        Err(why) => not_tested("a read-only store", &why),
    }
}

#[test]
#[ignore = "runs as another process"]
fn child_reads_only() {
    let store = AdapterStore::open(env::var_os(STORE_DIR).unwrap()).unwrap();
    assert_eq!(store.list().unwrap(), [USER]);
    for refused in [store.save(USER, &record(3.0)), store.save("ben", &record(3.0)), store.delete(USER)] {
        let refused = refused.unwrap_err();
        match &refused {
            StoreError::Io { source, .. } => assert_eq!(source.kind(), io::ErrorKind::ReadOnlyFilesystem, "{refused}"),
            other => panic!("{other}"),
        }
    }
    assert_eq!(stored(&store), 2.0);
}
