use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use meshwork_base::{Clock, SystemClock};
use rustix::fs::OFlags;

use super::*;
use crate::{Format, inventory};

static LOG: Log = Log {
    name: "some log",
    thread: "some-log",
    dropped: &inventory::ACCESS_LOG_DROPPED,
    hand_over: 1,
    full: 64 * 1024,
    age: None,
    is_the_process_log: false,
};

fn dropped(metrics: &MetricsRegistry) -> u64 {
    let text = metrics.render(Format::Prometheus);
    let of = |line: &str| line.strip_prefix("meshwork_access_log_dropped_total ").map(str::to_owned);
    text.lines().find_map(of).expect("the counter is there").parse().expect("a number")
}

/// A pipe that takes all it can, and its end for reading, which does not wait.
fn pipe(path: &Path) -> (Output, std::fs::File) {
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let mut options = std::fs::OpenOptions::new();
    let reader = options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path).unwrap();
    (Output::open(path).unwrap(), reader)
}

/// Writes more than a pipe takes by itself, and waits until the thread is held by it.
fn hold(lines: &Lines) -> LinesWriter {
    let writer = lines.writer();
    writer.write(|out| {
        out.resize(1 << 20, b'x');
        out.push(b'\n');
    });
    while lines.in_hand.load(Ordering::Relaxed) != 1 {
        std::thread::yield_now();
    }
    writer
}

fn put(writer: &LinesWriter, numbers: std::ops::Range<u32>) {
    numbers.for_each(|number| writer.write(|out| out.extend_from_slice(format!("{number}\n").as_bytes())));
}

#[test]
fn an_output_that_nobody_reads_does_not_hold_the_end_and_what_it_has_not_taken_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (output, mut reader) = pipe(&dir.path().join("pipe"));
    let metrics = MetricsRegistry::default();
    let lines = Lines::start(&LOG, output, &metrics).unwrap();
    let held = hold(&lines);
    let waiting = lines.writer();
    put(&waiting, 0..7);
    assert!(!lines.finish(Duration::from_millis(1)));
    assert_eq!(dropped(&metrics), 8);
    let (clock, long) = (SystemClock::new(), Duration::from_secs(20));
    let again = clock.now();
    assert!(!lines.finish(long) && clock.now().since(again) < long, "and nobody waits again");
    // The thread may be just about to write.
    rustix::fs::fcntl_setfl(&reader, OFlags::empty()).unwrap();
    let mut some = [0; 1024];
    assert!(reader.read(&mut some).unwrap() > 0, "what a pipe takes has come");
    // The line that was held fails now.
    drop(reader);
    assert!(lines.written(long));
    assert_eq!(dropped(&metrics), 8, "counted once");
    drop((held, waiting));
}

#[test]
fn a_full_buffer_drops_and_counts_instead_of_growing_or_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let (output, _reader) = pipe(&dir.path().join("pipe"));
    let metrics = MetricsRegistry::default();
    let lines = Lines::start(&LOG, output, &metrics).unwrap();
    let _held = hold(&lines);
    let writer = lines.writer();
    put(&writer, 0..100_000);
    {
        let buffer = writer.shared.buffer.lock();
        assert!(buffer.bytes.len() < LOG.full + 16);
        assert_eq!(buffer.lines + dropped(&metrics), 100_000);
    }
    assert!(dropped(&metrics) > 0);
    lines.finish(Duration::from_millis(1));
}

#[test]
fn whoever_reads_again_gets_lines_whole_and_in_order_up_to_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (output, reader) = pipe(&dir.path().join("pipe"));
    let metrics = MetricsRegistry::default();
    let lines = Lines::start(&LOG, output, &metrics).unwrap();
    let writer = hold(&lines);
    put(&writer, 0..100_000);
    let lost = u32::try_from(dropped(&metrics)).unwrap();
    rustix::fs::fcntl_setfl(&reader, OFlags::empty()).unwrap();
    let mut reader = std::io::BufReader::new(reader);
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    while !lines.written(LAST) {}
    put(&writer, 100_000..100_003);
    assert!(lines.finish(LAST));
    drop((writer, lines));
    let text = reading.join().unwrap().unwrap();
    let (held, rest) = text.split_once('\n').unwrap();
    assert!(held.len() == 1 << 20 && held.bytes().all(|b| b == b'x'));
    let numbers: Vec<u32> = rest.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.into_iter().eq((0..100_000 - lost).chain(100_000..100_003)));
}

#[test]
fn a_line_that_was_cut_off_swallows_none_of_those_after_it_and_none_before_it_counts_as_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (output, mut reader) = pipe(&dir.path().join("pipe"));
    // It fails in the middle, as a disk that becomes full.
    let Output::File { file, .. } = &output else { unreachable!("a pipe has a path") };
    rustix::fs::fcntl_setfl(file, OFlags::NONBLOCK).unwrap();
    let metrics = MetricsRegistry::default();
    let lines = Lines::start(&LOG, output, &metrics).unwrap();
    let writer = lines.writer();
    let mut text = String::new();
    let mut write = |write: &dyn Fn(&mut Vec<u8>)| {
        writer.write(write);
        assert!(lines.finish(LAST));
        // It ends with what there is: `WouldBlock`.
        drop(reader.read_to_string(&mut text));
        text.len()
    };
    let cut_off = write(&|out| {
        out.extend_from_slice(b"first\n");
        out.resize(1 << 20, b'x');
        out.push(b'\n');
    });
    assert!(cut_off < 1 << 20);
    assert_eq!(dropped(&metrics), 1);
    write(&|out| out.extend_from_slice(b"second\n"));
    write(&|out| out.extend_from_slice(b"third\n"));
    let mut seen = text.lines();
    assert_eq!(seen.next(), Some("first"));
    assert!(seen.next().is_some_and(|line| line.bytes().all(|byte| byte == b'x')));
    assert_eq!(seen.collect::<Vec<_>>(), ["second", "third"]);
    drop(writer);
}

#[test]
fn of_lines_that_are_written_into_a_pipe_together_each_stays_whole_whoever_else_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut output, mut reader) = pipe(&dir.path().join("pipe"));
    let Output::File { file, .. } = &output else { unreachable!("a pipe has a path") };
    // What is written at once is read at once, and what others write would come between.
    rustix::fs::fcntl_setfl(file, OFlags::DIRECT).unwrap();
    let long = format!("{}\n", "x".repeat(5000));
    let lines: String = (0..200).map(|number| format!("{number:0>80}\n")).collect();
    for (text, torn) in [(lines.clone(), 0), (format!("{long}{lines}{long}"), 2), (long, 1)] {
        let (written, result) = output.write(text.as_bytes());
        assert!(result.is_ok() && written == text.len(), "{result:?} after {written}");
        let mut pieces = Vec::new();
        let mut piece = [0; 8192];
        while let Ok(length) = reader.read(&mut piece) {
            pieces.push(String::from_utf8(piece[..length].to_vec()).unwrap());
        }
        assert_eq!(pieces.concat(), text);
        assert_eq!(pieces.iter().filter(|piece| !piece.ends_with('\n')).count(), torn, "only a longer line");
        assert!(pieces.len() <= text.len() / 4000 + 3, "{} pieces: no more than it takes", pieces.len());
    }
}

#[test]
fn a_line_that_was_cut_off_before_the_start_or_a_rotation_swallows_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let metrics = MetricsRegistry::default();
    for (content, seen) in [("whole\ncut o", "whole\ncut o\n0\n"), ("whole\n", "whole\n0\n"), ("", "0\n")] {
        std::fs::write(&path, content).unwrap();
        let lines = Lines::start(&LOG, Output::open(&path).unwrap(), &metrics).unwrap();
        put(&lines.writer(), 0..1);
        assert!(lines.finish(LAST));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), seen);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, content).unwrap();
        lines.reopen();
        assert!(lines.written(LAST));
        put(&lines.writer(), 0..1);
        assert!(lines.finish(LAST));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), seen, "after a rotation");
    }
}

#[test]
fn what_the_thread_was_told_does_not_gather_until_there_is_no_place_for_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = MetricsRegistry::default();
    let output = Output::open(&dir.path().join("log")).unwrap();
    let (lines, mut drain, hear) = Lines::prepare(&LOG, output, &metrics);
    let writers = [lines.writer(), lines.writer(), lines.writer()];
    for _ in 0..TOLD {
        writers.iter().for_each(|writer| put(writer, 0..1));
        assert!(drain.round(&hear, false));
    }
    assert!(hear.try_recv().is_err(), "what was told is done");
}

/// The log into which the thread says what is missing.
struct Told(LinesWriter);

impl std::io::Write for &Told {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.write(|out| out.extend_from_slice(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn that_lines_are_missing_is_written_too_when_they_are_the_last() {
    static PROCESS_LOG: Log = Log { is_the_process_log: true, ..LOG };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let metrics = MetricsRegistry::default();
    let (lines, mut drain, hear) = Lines::prepare(&PROCESS_LOG, Output::open(&path).unwrap(), &metrics);
    let writer = lines.writer();
    put(&writer, 0..100_000);
    assert!(dropped(&metrics) > 0);
    let (done, wait) = sync_channel(1);
    lines.tell.try_send(Message::Flush(done)).unwrap();
    let told = tracing_subscriber::fmt().with_writer(Arc::new(Told(writer))).finish();
    assert!(tracing::subscriber::with_default(told, || drain.round(&hear, false)));
    assert_eq!(wait.try_recv(), Ok(()));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.lines().last().unwrap().contains("lines are missing here"), "it is there at the end");
}
