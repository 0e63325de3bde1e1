//! The adapter store against processes that are killed, disks that are full and disks that cannot be written.
//!
//! The process that is killed is this test binary again, running one of its ignored tests. What needs the kernel's leave
//! (a private mount, tracing) says loudly what was not tested where it is not given, and fails under `./dev test`.

#![cfg(target_os = "linux")]
#![expect(clippy::print_stdout, reason = "the processes that are killed report what they saved")]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use inlay_format::record::{
    self, BaseId, Dtype, LORA_KIND, PartHeader, PartValues, PointValues, Record, RecordChecksum, TensorValues,
};
use inlay_format::state::{self, Header};
use inlay_runtime::store::{Action, AdapterStore, StoreError, StoreKey};

const USER: &str = "anna";
/// The store's folder, for the ignored tests.
const STORE_DIR: &str = "INLAY_TEST_STORE";
/// What an ignored test does in it.
const MODE: &str = "INLAY_TEST_MODE";
const SIGKILL: i32 = 9;

/// How a store is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Plain,
    Encrypted,
    /// A rollback instead of a save.
    Rollback,
    /// A save over a record with a training state, which is gone with it.
    OverState,
    /// The training state instead of a record.
    State,
    /// A record from a file.
    Import,
    Delete,
    /// Not by the store: a file that is overwritten in place.
    InPlace,
}

impl Mode {
    /// What a store does; a crash in it has to leave what was before or what comes after.
    const OF_STORE: [Mode; 7] =
        [Mode::Plain, Mode::Encrypted, Mode::Rollback, Mode::OverState, Mode::State, Mode::Import, Mode::Delete];

    fn of_child() -> Self {
        let name = env::var(MODE).unwrap_or_default();
        let all = Mode::OF_STORE.into_iter().chain([Mode::InPlace]);
        all.into_iter().find(|mode| format!("{mode:?}") == name).unwrap_or(Mode::Plain)
    }

    /// The record that is there before the writing, and the one after it.
    fn records(self) -> (Option<f32>, Option<f32>) {
        let after = match self {
            Mode::State => Some(1.0),
            Mode::Delete => None,
            _ => Some(2.0),
        };
        (Some(1.0), after)
    }

    fn open(self, dir: impl AsRef<Path>) -> AdapterStore {
        let store = AdapterStore::open(dir).unwrap();
        if self == Mode::Encrypted { store.with_key(StoreKey::new([7; 32])) } else { store }
    }
}

/// The store that an ignored test works on.
fn store_of_child() -> AdapterStore {
    Mode::of_child().open(env::var_os(STORE_DIR).unwrap())
}

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

/// The value that a record was made of. Fails unless it is whole.
fn value_of(bytes: &[u8]) -> f32 {
    let part = Record::decode(bytes).unwrap().parts().next().unwrap();
    let value = part.point("fc1").unwrap().tensors().next().unwrap().values().next().unwrap();
    assert_eq!(bytes, record(value));
    value
}

/// The value that the stored record was made of. Fails unless it is whole.
fn stored(store: &AdapterStore) -> f32 {
    value_of(&store.load(USER).unwrap())
}

fn checksum(record: &[u8]) -> RecordChecksum {
    Record::decode(record).unwrap().checksum()
}

/// The optimizer's state that continues the record of `value`.
fn state_of(value: f32) -> Vec<u8> {
    let array = [value; 1000];
    let arrays: [&[&[f32]]; 1] = [&[&array]];
    let header = Header { record: checksum(&record(value)), optimizer: state::SGD, step: 1, seed: 1 };
    let mut bytes = vec![0; state::encoded_len(&header, &arrays).unwrap()];
    state::encode(&header, &arrays, &mut bytes).unwrap();
    bytes
}

fn temporaries(dir: &Path) -> usize {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".tmp")).count()
}

/// This binary again, running its ignored test `name` on the store in `dir`.
fn child(name: &str, dir: &Path, mode: Mode) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(CHILD_ARGUMENTS).arg(name).env(STORE_DIR, dir).env(MODE, format!("{mode:?}"));
    command
}

const CHILD_ARGUMENTS: [&str; 3] = ["--ignored", "--nocapture", "--exact"];

/// Where the machine does not give leave. `./dev test` asks for it.
fn not_tested(what: &str, why: &str) {
    let required = env::var("INLAY_REQUIRE_FAULTS").is_ok_and(|value| value == "1");
    assert!(!required, "{what}: {why}; INLAY_REQUIRE_FAULTS=0 goes on without");
    eprintln!("NOT TESTED: {what}: {why}");
}

#[test]
#[ignore = "runs as another process"]
fn child_saves_until_killed() {
    let store = store_of_child();
    let first = store.load_if_any(USER).unwrap().map_or(1.0, |record| value_of(&record) + 1.0);
    for value in (0u16..).map(|n| first + f32::from(n)) {
        match Mode::of_child() {
            Mode::InPlace => fs::write(store.path_of(USER).unwrap(), record(value)).unwrap(),
            _ => store.save(USER, &record(value)).unwrap(),
        }
        println!("saved {value}");
    }
}

/// For `tests/power-cut.sh`: what the store holds after the power came back.
#[test]
#[ignore = "runs as another process"]
fn child_reports() {
    let store = store_of_child();
    match store.load_if_any(USER) {
        Ok(Some(bytes)) => println!("found {}", value_of(&bytes)),
        Ok(None) => println!("found nothing"),
        Err(error) => println!("found damage: {error}"),
    }
}

#[test]
fn what_was_saved_survives_five_hundred_killed_writers() {
    const KILLS: u64 = 500;
    let mut leftovers = 0;
    for mode in [Mode::Plain, Mode::Encrypted] {
        let folder = tempfile::tempdir().unwrap();
        store_before(folder.path(), mode);
        for kill in 0..KILLS / 2 {
            let mut command = child("child_saves_until_killed", folder.path(), mode);
            let mut writer = command.stdout(Stdio::piped()).spawn().unwrap();
            let lines = BufReader::new(writer.stdout.take().unwrap()).lines().map(Result::unwrap);
            let mut saved = lines.filter_map(|line| line.split("saved ").nth(1)?.parse::<f32>().ok());
            let first = saved.next().expect("the writer goes on");
            // Anywhere within the saves that follow, which take a millisecond or so each.
            thread::sleep(Duration::from_micros(kill * 7919 % 3000));
            writer.kill().unwrap();
            writer.wait().unwrap();
            let acknowledged = saved.last().unwrap_or(first);

            leftovers += usize::from(temporaries(folder.path()) > 0);
            let store = mode.open(folder.path());
            let found = stored(&store);
            assert!(found == acknowledged || found == acknowledged + 1.0, "{found} after {acknowledged} was saved");
            let before = value_of(&store.load_previous(USER).unwrap().expect("one was there"));
            assert!(before == found || before == found - 1.0 || kill == 0, "{before} kept before {found}");
            assert_eq!(temporaries(folder.path()), 0, "leftovers of the killed writer");
        }
    }
    eprintln!("{leftovers} of {KILLS} killed writers left a temporary file");
    assert!(leftovers > 0, "no writer was killed while it wrote");
}

#[test]
#[ignore = "runs as another process"]
fn child_writes_once() {
    let store = store_of_child();
    let done = match Mode::of_child() {
        Mode::Plain | Mode::Encrypted | Mode::OverState => store.save(USER, &record(2.0)),
        Mode::Rollback => store.rollback(USER),
        Mode::State => store.save_state(USER, &state_of(1.0)),
        Mode::Import => store.import(USER, import_file(store.dir())),
        Mode::Delete => store.delete(USER),
        Mode::InPlace => {
            fs::write(store.path_of(USER).unwrap(), record(2.0)).unwrap();
            Ok(())
        }
    };
    match done {
        Ok(()) => println!("saved"),
        Err(StoreError::Io { action, source, .. }) => println!("refused {action:?} {:?}", source.kind()),
        Err(other) => panic!("{other}"),
    }
}

/// A store that holds record 1, and before it what a rollback would bring back: record 2.
fn store_before(dir: &Path, mode: Mode) -> AdapterStore {
    let store = mode.open(dir);
    store.save(USER, &record(2.0)).unwrap();
    store.save(USER, &record(1.0)).unwrap();
    match mode {
        Mode::OverState => store.save_state(USER, &state_of(1.0)).unwrap(),
        Mode::Import => fs::write(import_file(dir), record(2.0)).unwrap(),
        _ => {}
    }
    store
}

/// What is imported into the store in `dir`.
fn import_file(dir: &Path) -> PathBuf {
    dir.join("import")
}

/// Runs `child_writes_once` under strace, with `options`, which are about its calls on the store's files.
fn write_under_strace(dir: &Path, mode: Mode, options: &[&str]) -> Output {
    let mut command = Command::new("strace");
    command.arg("-f").args(options).arg("-P").arg(dir);
    for file in ["anna.adapter", "anna.previous", "anna.state", "0.tmp", "1.tmp", "store.lock", "import"] {
        command.arg("-P").arg(dir.join(file));
    }
    let plain = child("child_writes_once", dir, mode);
    command.arg(plain.get_program()).args(plain.get_args());
    command.env(STORE_DIR, dir).env(MODE, format!("{mode:?}")).output().unwrap()
}

/// Why this machine cannot trace, if it cannot.
fn strace_missing() -> Option<String> {
    match Command::new("strace").args(["-o", "/dev/null", "true"]).output() {
        Ok(traced) if traced.status.success() => None,
        Ok(traced) => Some(String::from_utf8_lossy(&traced.stderr).into_owned()),
        Err(error) => Some(format!("strace: {error}; install it")),
    }
}

/// The system calls of a writing on the store's files, whatever they are, and how many there are of each.
fn system_calls(mode: Mode) -> BTreeMap<String, usize> {
    let folder = tempfile::tempdir().unwrap();
    let dir = store_before(&folder.path().join("store"), mode).dir().to_owned();
    let trace = folder.path().join("trace");
    let traced = write_under_strace(&dir, mode, &["-o", trace.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&traced.stdout).contains("saved"), "{traced:?}");
    let mut calls = BTreeMap::new();
    for line in fs::read_to_string(trace).unwrap().lines() {
        // `PID name(arguments) = result`, or `PID name(arguments <unfinished ...>`, or `PID <... name resumed>...`.
        let name = line.split_once(' ').and_then(|(_, call)| call.trim_start().split_once('('));
        if let Some((name, _)) = name.filter(|(name, _)| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')) {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    calls
}

/// How the store was found after a crash at each system call.
#[derive(Debug, Default)]
struct Crashes {
    old: usize,
    new: usize,
    damaged: usize,
}

fn crash_everywhere(mode: Mode) -> Crashes {
    let calls = system_calls(mode);
    let (old, new) = mode.records();
    let mut crashes = Crashes::default();
    for (call, nth) in calls.iter().flat_map(|(call, count)| (1..=*count).map(move |nth| (call, nth))) {
        let at = format!("{mode:?} killed at {call} {nth}");
        let folder = tempfile::tempdir().unwrap();
        let dir = store_before(folder.path(), mode).dir().to_owned();
        let inject = format!("inject={call}:signal=KILL:when={nth}");
        let traced = write_under_strace(&dir, mode, &injected(&inject));
        assert_eq!(traced.status.signal(), Some(SIGKILL), "{at}: the call was not made again: {traced:?}");

        let store = mode.open(folder.path());
        assert_eq!(temporaries(store.dir()), 0, "{at}");
        match store.load_if_any(USER).map(|found| found.map(|bytes| value_of(&bytes))) {
            Ok(found) if found == old && (old != new || state_is(&store, None)) => crashes.old += 1,
            Ok(found) if found == new && (old != new || state_is(&store, Some(1.0))) => crashes.new += 1,
            Ok(other) => panic!("{at}: record {other:?}"),
            Err(_) => crashes.damaged += 1,
        }
        let before = store.load_previous(USER).unwrap().map(|bytes| value_of(&bytes));
        assert!(before.map_or(mode == Mode::Delete, |before| [1.0, 2.0].contains(&before)), "{at}: {before:?} is kept");
        if mode == Mode::OverState {
            // With the record that it continued, or not at all; what is left of it is swept.
            let found = stored(&store);
            assert!(state_is(&store, None) || found == 1.0 && state_is(&store, Some(1.0)), "{at}");
            store.sweep().unwrap();
            let is_kept = dir.join("anna.state").exists();
            assert_eq!(is_kept, store.load_state(USER).unwrap().is_some(), "{at}: a state of another record is left");
        }
    }
    eprintln!("{mode:?}: {crashes:?} at {calls:?}");
    crashes
}

/// Whether the training state is the one of that record, or not there.
fn state_is(store: &AdapterStore, expected: Option<f32>) -> bool {
    store.load_state(USER).unwrap() == expected.map(state_of)
}

/// One test a mode: each takes as many runs of a process as there are system calls.
fn crash_test(mode: Mode) {
    if let Some(why) = strace_missing() {
        return not_tested("crashes at every system call", &why);
    }
    let crashes = crash_everywhere(mode);
    assert_eq!(crashes.damaged, 0, "{mode:?}");
    assert!(crashes.old >= 5 && crashes.new >= 1, "{mode:?}: the crashes missed the writing: {crashes:?}");
}

#[test]
fn a_crash_at_any_system_call_of_a_save_leaves_the_old_record_or_the_new() {
    crash_test(Mode::Plain);
}

#[test]
fn a_crash_at_any_system_call_of_an_encrypted_save_leaves_the_old_record_or_the_new() {
    crash_test(Mode::Encrypted);
}

#[test]
fn a_crash_at_any_system_call_of_a_rollback_leaves_the_old_record_or_the_new() {
    crash_test(Mode::Rollback);
}

#[test]
fn a_crash_at_any_system_call_leaves_no_state_of_another_record() {
    crash_test(Mode::OverState);
    crash_test(Mode::State);
}

#[test]
fn a_crash_at_any_system_call_of_an_import_leaves_the_old_record_or_the_new() {
    crash_test(Mode::Import);
}

#[test]
fn a_crash_at_any_system_call_of_a_deletion_leaves_the_record_or_nothing() {
    crash_test(Mode::Delete);
}

#[test]
fn a_crash_in_a_file_that_is_written_in_place_is_seen() {
    if let Some(why) = strace_missing() {
        return not_tested("that the crash tests can fail", &why);
    }
    assert!(crash_everywhere(Mode::InPlace).damaged > 0, "the tests cannot fail");
}

#[test]
fn a_disk_that_fails_leaves_the_old_record() {
    if let Some(why) = strace_missing() {
        return not_tested("failing writes, syncs and renames", &why);
    }
    for mode in [Mode::Plain, Mode::Encrypted, Mode::Rollback] {
        for (inject, expected) in [
            ("write:error=ENOSPC:when=1", "refused Write StorageFull"),
            ("write:error=ENOSPC:when=2", "refused Write StorageFull"),
            ("write:error=EIO:when=1", "refused Write"),
            ("fsync:error=EIO:when=1", "refused Sync"),
            ("fsync:error=EIO:when=2", "refused Sync"),
            ("rename:error=EIO:when=1", "refused Rename"),
            ("rename:error=EIO:when=2", "refused Rename"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let store = store_before(folder.path(), mode);
            let traced = write_under_strace(store.dir(), mode, &injected(&format!("inject={inject}")));
            let output = String::from_utf8_lossy(&traced.stdout);
            let errors = String::from_utf8_lossy(&traced.stderr);
            assert!(output.contains(expected), "{mode:?} {inject}: {output}{errors}");
            assert_eq!(stored(&store), 1.0, "{mode:?} {inject}");
            assert!(store.load_previous(USER).unwrap().is_some(), "{mode:?} {inject}");
            assert_eq!(temporaries(store.dir()), 0, "{mode:?} {inject}: a failed save cleans up");
        }
    }
    // The folder's own sync: the record is in place, but nobody may call it saved.
    let folder = tempfile::tempdir().unwrap();
    let store = store_before(folder.path(), Mode::Plain);
    let traced = write_under_strace(store.dir(), Mode::Plain, &injected("inject=fsync:error=EIO:when=3"));
    assert!(String::from_utf8_lossy(&traced.stdout).contains("refused Sync"));
    assert_eq!(stored(&store), 2.0);
}

/// The options of strace that do so to a call.
fn injected(expression: &str) -> [&str; 4] {
    ["-o", "/dev/null", "-e", expression]
}

/// Counts up in the stored record until the time is over; prints how often.
#[test]
#[ignore = "runs as another process"]
fn child_counts() {
    let store = store_of_child();
    let end = Instant::now() + Duration::from_millis(env::var("INLAY_TEST_MS").unwrap().parse().unwrap());
    let mut counted = 0;
    while Instant::now() < end {
        let old = store.load(USER).unwrap();
        match store.save_over(USER, &record(value_of(&old) + 1.0), Some(checksum(&old))) {
            Ok(()) => counted += 1,
            Err(StoreError::Changed { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    println!("counted {counted}");
}

/// How long two processes save at once (s), unless the environment says otherwise.
const SECONDS: &str = "INLAY_STORE_SECONDS";

/// Two processes count in one record at once, in a plain store and in an encrypted one, while this one reads them.
#[test]
fn two_processes_that_save_at_once_for_a_minute_lose_nothing() {
    let seconds = env::var(SECONDS).map_or(60.0, |seconds| seconds.parse().expect("a number of seconds"));
    let folder = tempfile::tempdir().unwrap();
    thread::scope(|scope| {
        for mode in [Mode::Plain, Mode::Encrypted] {
            let dir = folder.path().join(format!("{mode:?}"));
            scope.spawn(move || count_in_two_processes(&dir, mode, Duration::from_secs_f64(seconds)));
        }
    });
}

fn count_in_two_processes(dir: &Path, mode: Mode, time: Duration) {
    let store = mode.open(dir);
    store.save(USER, &record(0.0)).unwrap();
    let mut counters: Vec<_> = (0..2)
        .map(|_| {
            let mut command = child("child_counts", dir, mode);
            command.env("INLAY_TEST_MS", time.as_millis().to_string()).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let (mut last, mut reads) = (0.0, 0);
    while counters.iter_mut().any(|counter| counter.try_wait().unwrap().is_none()) {
        let found = stored(&store);
        assert!(found >= last, "{found} after {last}");
        last = found;
        reads += 1;
    }
    let counted = counters.into_iter().map(|counter| {
        let output = counter.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        text.split("counted ").nth(1).unwrap().split_whitespace().next().unwrap().parse::<f32>().unwrap()
    });
    let counted: Vec<f32> = counted.collect();
    assert!(counted.iter().all(|count| *count > 0.0), "{counted:?}");
    assert_eq!(stored(&store), counted.iter().sum::<f32>(), "a save was lost");
    eprintln!("{mode:?}: saves {counted:?} in {time:?}, {reads} reads");
}

#[test]
fn ten_thousand_users_do_not_slow_the_store() {
    const USERS: usize = 10_000;
    let folder = tempfile::tempdir().unwrap();
    let store = AdapterStore::open(folder.path()).unwrap();
    let bytes = record(1.0);
    for user in 0..USERS {
        // Not by saving: a sync for each would take minutes.
        fs::write(store.path_of(&format!("user-{user}")).unwrap(), &bytes).unwrap();
    }
    // The best of some, since other tests run beside this one.
    let best = |work: &dyn Fn()| {
        let times = (0..10).map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        });
        times.min().unwrap()
    };
    let opening = best(&|| {
        let store = AdapterStore::open(folder.path()).unwrap();
        assert_eq!(store.load("user-1234").unwrap(), bytes);
    });
    let listing = best(&|| assert_eq!(store.list().unwrap().len(), USERS));
    eprintln!("{USERS} users: open one {opening:?}, list {listing:?}");
    assert!(opening < Duration::from_millis(5), "opening one takes {opening:?}");
    assert!(listing < Duration::from_millis(200), "listing takes {listing:?}");
}

#[test]
fn a_folder_without_permission_is_read_and_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("store");
    let store = AdapterStore::open(&dir).unwrap();
    store.save(USER, &record(2.0)).unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(folder.path(), 0o755);
    mode(&dir, 0o555);
    for file in [store.path_of(USER).unwrap(), dir.join("store.lock")] {
        mode(&file, 0o444);
    }
    // For root there are no permissions: as nobody, then.
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let plain = child("child_has_no_permission", &dir, Mode::Plain);
    let mut command = Command::new("setpriv");
    command.args(nobody).arg(plain.get_program()).args(plain.get_args()).env(STORE_DIR, &dir);
    match Command::new("setpriv").args(nobody).arg("test").arg("-x").arg(plain.get_program()).output() {
        Ok(leave) if leave.status.success() => assert_passed(&command.output().unwrap()),
        Ok(leave) => not_tested("a folder without permission", &String::from_utf8_lossy(&leave.stderr)),
        Err(error) => not_tested("a folder without permission", &format!("setpriv: {error}")),
    }
    mode(&dir, 0o755);
}

#[test]
#[ignore = "runs as another process"]
fn child_has_no_permission() {
    refuses_to_write(&store_of_child(), io::ErrorKind::PermissionDenied);
}

/// Every write is refused for this reason, and the record stays.
fn refuses_to_write(store: &AdapterStore, reason: io::ErrorKind) {
    assert_eq!(store.list().unwrap(), [USER]);
    let writes = [
        store.save(USER, &record(3.0)),
        store.save("ben", &record(3.0)),
        store.delete(USER),
        store.rollback(USER),
        store.sweep().map(drop),
    ];
    for refused in writes {
        let refused = refused.unwrap_err();
        match &refused {
            StoreError::Io { source, .. } => assert_eq!(source.kind(), reason, "{refused}"),
            other => panic!("{other}"),
        }
        assert!(refused.to_string().ends_with("; choose a folder that this program may write"), "{refused}");
    }
    assert_eq!(stored(store), 2.0);
}

/// Runs `script` with a private mount namespace, `$DIR` an empty folder and `run NAME` running the ignored test NAME with
/// the store in `$DIR`. Returns why it cannot, if this machine does not give leave.
fn with_private_mounts(script: &str) -> Result<Output, String> {
    let folder = tempfile::tempdir().unwrap();
    let script =
        format!("set -e\nrun() {{ {STORE_DIR}=\"$DIR\" \"$EXE\" --ignored --nocapture --exact \"$1\"; }}\n{script}");
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
    let store = store_of_child();
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
    for other in ["other-0", "other-1"] {
        store.delete(other).unwrap();
    }
    store.save(USER, &record(4.0)).unwrap();
    assert_eq!(stored(&store), 4.0);
}

#[test]
fn a_read_only_store_can_be_read() {
    let script = "mount -t tmpfs -o size=64k none \"$DIR\"\nrun child_writes_once\n\
                  mount -o remount,ro \"$DIR\"\nrun child_reads_only";
    match with_private_mounts(script) {
        Ok(output) => assert_passed(&output),
        Err(why) => not_tested("a read-only store", &why),
    }
}

#[test]
#[ignore = "runs as another process"]
fn child_reads_only() {
    refuses_to_write(&store_of_child(), io::ErrorKind::ReadOnlyFilesystem);
}
