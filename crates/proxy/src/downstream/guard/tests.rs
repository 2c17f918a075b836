//! Judging frames by their heads.

use std::time::Duration;

use super::*;
use crate::http::frames::tests::frame;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const END_STREAM: u8 = 1;
/// END_HEADERS: the whole block.
const BLOCK: u8 = 4;

fn begun() -> Incoming {
    let mut incoming = Incoming::new(Tick::ZERO, Rc::default());
    assert_eq!(incoming.judge(&mut PREFACE.to_vec(), || Tick::ZERO), None);
    incoming
}

fn judge(incoming: &mut Incoming, bytes: &[u8]) -> Option<&'static str> {
    incoming.judge(&mut bytes.to_vec(), || Tick::ZERO).map(|(_, fault)| fault.cause)
}

#[test]
fn a_frame_behind_its_stream_s_end_is_a_fault_and_never_gets_whole() {
    let reset = [frame(1, BLOCK, 1, b"h"), frame(3, 0, 1, &[0; 4])].concat();
    for first in [frame(1, BLOCK | END_STREAM, 1, b"h"), reset] {
        for second in [frame(0, 0, 1, b"d"), frame(1, BLOCK | END_STREAM, 1, b"t")] {
            let mut incoming = begun();
            assert_eq!(judge(&mut incoming, &first), None);
            let (keep, fault) = incoming.judge(&mut second.clone(), || Tick::ZERO).unwrap();
            assert_eq!((keep, fault.reason), (8, Reason::STREAM_CLOSED), "all but the last byte of its head");
        }
    }
}

#[test]
fn bodies_and_trailers_pass_and_so_does_what_races_with_our_own_reset() {
    let mut incoming = begun();
    for bytes in [
        frame(1, BLOCK, 1, b"h"),
        frame(1, BLOCK, 3, b"h"),
        frame(0, 0, 1, b"d"),
        frame(1, BLOCK | END_STREAM, 1, b"t"),
        frame(0, END_STREAM, 3, b""),
        frame(8, 0, 1, &[0, 0, 0, 1]),
        frame(3, 0, 1, &[0; 4]),
    ] {
        assert_eq!(judge(&mut incoming, &bytes), None);
    }
    assert_eq!(incoming.received.flow().count(), 0);
}

#[test]
fn streams_without_end_cost_a_bounded_memory() {
    let mut incoming = begun();
    for stream in (1..40_000).step_by(2) {
        assert_eq!(judge(&mut incoming, &frame(1, BLOCK, stream, b"h")), None);
    }
    assert!(incoming.received.flow().count() <= 8 * 1024);
    assert_eq!(judge(&mut incoming, &frame(0, 0, 1, b"d")), None, "of old ones nothing is known");
    assert_eq!(judge(&mut incoming, &frame(0, END_STREAM, 39_999, b"d")), None);
    assert_eq!(judge(&mut incoming, &frame(0, 0, 39_999, b"d")), Some("stream_closed"));
}

#[test]
fn more_than_a_stream_has_room_for_is_a_fault() {
    let mut incoming = begun();
    assert_eq!(judge(&mut incoming, &frame(1, BLOCK, 1, b"h")), None);
    for _ in 0..8 {
        assert_eq!(judge(&mut incoming, &frame(0, 0, 1, &[b'd'; 16 * 1024])), None);
    }
    assert_eq!(judge(&mut incoming, &frame(0, 0, 1, b"d")), Some("flow_control"));
}

#[test]
fn what_h2_judges_itself_is_left_to_it() {
    let mut incoming = begun();
    assert_eq!(judge(&mut incoming, &frame(1, BLOCK | END_STREAM, 5, b"h")), None);
    assert_eq!(judge(&mut incoming, &frame(1, BLOCK | END_STREAM, 3, b"h")), None, "never begun");
    assert_eq!(judge(&mut incoming, &frame(1, END_STREAM, 7, b"h")), None);
    assert_eq!(judge(&mut incoming, &frame(0, 0, 7, b"d")), None, "in the middle of a block");
}

#[test]
fn a_window_that_is_none_is_found_in_any_portion() {
    let bytes = frame(4, 0, 0, &[0, 3, 0, 0, 0, 9, 0, 4, 0x80, 0, 0, 0]);
    let mut incoming = begun();
    let found = bytes.iter().position(|byte| judge(&mut incoming, &[*byte]) == Some("window_size"));
    assert_eq!(found, Some(bytes.len() - 1));
    let mut incoming = begun();
    assert_eq!(judge(&mut incoming, &frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff])), None);
}

#[test]
fn frames_that_carry_nothing_are_paid_for_by_time_and_by_traffic() {
    let ping = frame(6, 0, 0, &[0; 8]);
    let mut incoming = begun();
    for _ in 0..BURST {
        assert_eq!(judge(&mut incoming, &ping), None);
    }
    let request = frame(1, BLOCK | END_STREAM, 1, b"h");
    assert_eq!(judge(&mut incoming, &request), None);
    for _ in 0..4 {
        assert_eq!(judge(&mut incoming, &ping), None, "a request pays for some");
    }
    let later = || Tick::ZERO.after(Duration::from_secs(2));
    for _ in 0..2 * PER_SECOND {
        assert_eq!(incoming.judge(&mut ping.clone(), later), None);
    }
    let (_, fault) = incoming.judge(&mut ping.clone(), later).unwrap();
    assert_eq!(fault, Fault::new(Reason::ENHANCE_YOUR_CALM, "ping_flood"));
}

#[test]
fn each_flood_has_a_name() {
    for (kind, payload, name) in [
        (0, 0, "empty_data_flood"),
        (2, 5, "priority_flood"),
        (3, 4, "reset_flood"),
        (4, 0, "settings_flood"),
        (8, 4, "window_update_flood"),
        (9, 1, "continuation_flood"),
        (42, 1, "unknown_frame_flood"),
    ] {
        let mut incoming = begun();
        let bytes = frame(kind, 0, 2, &vec![0; payload]).repeat(BURST as usize + 1);
        assert_eq!(judge(&mut incoming, &bytes), Some(name));
    }
}

#[test]
fn a_caller_s_goodbye_is_taken_by_its_code_and_never_reaches_h2() {
    let goodbye =
        |code: u32| frame(7, 0, 0, &[&1u32.to_be_bytes()[..], &code.to_be_bytes(), b"why"].concat());
    for (code, known) in [(0, true), (13, true), (14, false), (0x0700_0000, false)] {
        for portion in [1, 4, 9, 100] {
            let sent = [frame(1, BLOCK, 1, b"h"), goodbye(code), frame(6, 0, 0, &[7; 8])].concat();
            let mut incoming = begun();
            let mut passed = sent.clone();
            for part in passed.chunks_mut(portion) {
                assert_eq!(incoming.judge(part, || Tick::ZERO), None);
            }
            assert_eq!(incoming.goodbye, known, "{code}");
            let changed: Vec<_> = (0..sent.len()).filter(|&at| sent[at] != passed[at]).collect();
            assert_eq!(changed, [10 + 3], "the kind of one frame");
        }
    }
}

#[test]
fn a_goodbye_of_a_wrong_shape_is_a_fault() {
    assert_eq!(judge(&mut begun(), &frame(7, 0, 0, &[0; 7])), Some("frame_size"));
    assert_eq!(judge(&mut begun(), &frame(7, 0, 1, &[0; 8])), Some("protocol_error"));
}

#[test]
fn a_head_is_on_its_way_until_its_block_ends() {
    let mut incoming = begun();
    let bytes = [frame(1, 0, 1, b"head"), frame(9, 0, 1, b"more"), frame(9, BLOCK, 1, b"end")].concat();
    let begins = 8;
    for (at, byte) in bytes.iter().enumerate() {
        assert_eq!(judge(&mut incoming, &[*byte]), None);
        assert_eq!(incoming.is_in_head(), (begins..bytes.len() - 1).contains(&at), "byte {at}");
    }
    for part in frame(0, END_STREAM, 1, b"body").chunks(5) {
        assert_eq!(judge(&mut incoming, part), None);
        assert!(!incoming.is_in_head());
    }
}

#[test]
fn a_goodbye_with_an_error_is_one_that_is_waited_for() {
    let goodbye = |code: u32| [&1u32.to_be_bytes()[..], &code.to_be_bytes(), b"words"].concat();
    for (code, refuses) in [(0, false), (11, true)] {
        for portion in [1, 3, 100] {
            let mut outgoing = Outgoing::default();
            let bytes = [frame(0, 0, 1, &[9; 20]), frame(7, 0, 0, &goodbye(code))].concat();
            let mut heads = Heads::after(0);
            let mut explain = |mut part: &[u8]| {
                std::iter::from_fn(|| heads.next(&mut part))
                    .map(|piece| outgoing.explains(&piece))
                    .sum::<u32>()
            };
            let explained: u32 = bytes.chunks(portion).map(&mut explain).sum();
            assert_eq!((explained, outgoing.refuses), (4, refuses));
        }
    }
}
