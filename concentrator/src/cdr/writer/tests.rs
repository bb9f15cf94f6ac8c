//! Lines into real files.

use std::fs;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use super::*;

#[test]
fn every_line_is_in_the_file_when_the_thread_has_ended_and_what_was_there_stays() {
    let folder = Folder::new("whole");
    let path = folder.0.join("cdr.jsonl");
    fs::write(&path, "before\n").expect("a file");
    let writing = Writing::start(&path);
    for number in 0..1000 {
        writing.line(&format!("line {number}"));
    }
    let shared = writing.end();
    let text = fs::read_to_string(&path).expect("the file");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        (lines.len(), lines[0], lines[1000]),
        (1001, "before", "line 999")
    );
    assert_eq!(shared.counters.written.load(Ordering::Relaxed), 1000);
}

#[test]
fn a_renamed_file_is_left_and_a_new_one_begun() {
    let folder = Folder::new("renamed");
    let (path, old) = (folder.0.join("cdr.jsonl"), folder.0.join("cdr.1.jsonl"));
    let writing = Writing::start(&path);
    writing.line("first");
    writing.wait(|shared| shared.counters.written.load(Ordering::Relaxed) == 1);
    fs::rename(&path, &old).expect("renamed");
    writing.line("second");
    writing.wait(|shared| shared.counters.written.load(Ordering::Relaxed) == 2);
    writing.shared.reopen.store(true, Ordering::Relaxed);
    writing.jobs.send(Job::Look).expect("the thread");
    writing.wait(|_| path.exists());
    writing.line("third");
    writing.end();
    assert_eq!(
        fs::read_to_string(&old).expect("the old"),
        "first\nsecond\n"
    );
    assert_eq!(fs::read_to_string(&path).expect("the new"), "third\n");
}

#[test]
fn what_a_full_disk_does_not_take_is_counted_and_later_lines_are_tried_again() {
    let writing = Writing::start(Path::new("/dev/full"));
    writing.line("lost");
    writing.wait(|shared| shared.counters.failed.load(Ordering::Relaxed) == 1);
    writing.line("lost too");
    let shared = writing.end();
    assert_eq!(shared.counters.failed.load(Ordering::Relaxed), 2);
    assert_eq!(shared.counters.written.load(Ordering::Relaxed), 0);
}

#[test]
fn others_do_not_read_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new("mode");
    let path = folder.0.join("cdr.jsonl");
    Writing::start(&path).end();
    let mode = fs::metadata(&path).expect("the file").permissions().mode();
    assert_eq!(mode & 0o007, 0, "{mode:o}");
}

struct Writing {
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Writing {
    fn start(path: &Path) -> Self {
        let (jobs, receiver) = sync_channel(2000);
        let shared = Arc::new(Shared::default());
        let file = open(path).expect("a file");
        let thread = start(path.to_owned(), file, receiver, Arc::clone(&shared));
        Self {
            jobs,
            shared,
            thread: thread.expect("a thread"),
        }
    }

    fn line(&self, line: &str) {
        self.jobs
            .send(Job::Line(line.to_owned()))
            .expect("the thread");
    }

    fn wait(&self, done: impl Fn(&Shared) -> bool) {
        for _ in 0..1000 {
            if done(&self.shared) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("nothing has happened for 5 s");
    }

    fn end(self) -> Arc<Shared> {
        self.jobs.send(Job::End).expect("the thread");
        self.thread.join().expect("no panic");
        self.shared
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("sipcast-cdr-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
