use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

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
    assert!(!lines.finish(LAST), "and nobody waits again");
    drop((held, waiting, lines));
    let mut some = [0; 1024];
    assert!(reader.read(&mut some).unwrap() > 0, "what a pipe takes has come");
    assert_eq!(dropped(&metrics), 8, "counted once");
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
