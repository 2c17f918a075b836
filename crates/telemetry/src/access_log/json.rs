//! A record as one line of JSON, written by hand: this runs for every request.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use meshwork_base::clock::rfc3339_millis;

use crate::record::Record;

/// Writes lines; remembers the second it last wrote, since most lines share it.
#[derive(Debug)]
pub(super) struct LineWriter {
    second: u64,
    /// `2026-11-23T18:00:00.`
    prefix: [u8; 20],
}

impl Default for LineWriter {
    fn default() -> Self {
        let mut writer = Self { second: 0, prefix: [0; 20] };
        writer.remember(0);
        writer
    }
}

/// Room for the parts of a line whose length is known, so that the buffer grows once per line at most.
const FIXED: usize = 768;

impl LineWriter {
    /// Appends the record's line, newline included.
    pub(super) fn write(&mut self, out: &mut Vec<u8>, record: &Record) {
        out.reserve(FIXED);
        out.extend_from_slice(b"{\"start_time\":\"");
        self.time(out, record.start);
        out.push(b'"');
        let text = &record.text;
        string(out, b",\"method\":\"", text.method());
        string(out, b",\"path\":\"", text.path());
        string(out, b",\"authority\":\"", text.host());
        plain(out, b",\"protocol\":\"", record.protocol.as_str());
        number(out, b",\"response_code\":", u64::from(record.status));
        plain(out, b",\"response_flags\":\"", if record.flag.is_empty() { "-" } else { record.flag });
        if !record.cause.is_empty() {
            plain(out, b",\"cause\":\"", record.cause);
            plain(out, b",\"phase\":\"", record.phase.as_str());
        }
        optional(out, b",\"cause_detail\":\"", record.cause_detail.as_deref());
        millis(out, b",\"duration\":", record.duration);
        if let Some(time) = record.time_to_first_byte {
            millis(out, b",\"upstream_service_time\":", time);
        }
        number(out, b",\"bytes_received\":", record.bytes_received);
        number(out, b",\"bytes_sent\":", record.bytes_sent);
        number(out, b",\"attempts\":", u64::from(record.attempts));
        if let Some(status) = record.grpc_status {
            number(out, b",\"grpc_status\":", u64::from(status));
        }
        if record.mirrors > 0 {
            number(out, b",\"mirrors\":", u64::from(record.mirrors));
        }
        if record.mirrored {
            out.extend_from_slice(b",\"mirrored\":true");
        }
        identities(out, record);
        out.extend_from_slice(b"}\n");
    }

    fn time(&mut self, out: &mut Vec<u8>, wall: Duration) {
        if wall.as_secs() != self.second {
            self.remember(wall.as_secs());
        }
        out.extend_from_slice(&self.prefix);
        let millis = wall.subsec_millis();
        out.extend_from_slice(&[digit(millis / 100), digit(millis / 10 % 10), digit(millis % 10), b'Z']);
    }

    fn remember(&mut self, second: u64) {
        let text = rfc3339_millis(Duration::from_secs(second));
        // A year beyond 9999 would not fit; such a clock is broken and its log says the last year that does.
        if let Some(prefix) = text.as_bytes().get(..20).filter(|_| text.len() == 24) {
            self.prefix.copy_from_slice(prefix);
        }
        self.second = second;
    }
}

/// Who and where: everything that is left out when unknown.
fn identities(out: &mut Vec<u8>, record: &Record) {
    optional(out, b",\"listener\":\"", record.listener.as_deref());
    optional(out, b",\"route_name\":\"", record.route.as_deref());
    optional(out, b",\"rule\":\"", record.rule.as_deref());
    optional(out, b",\"upstream_cluster\":\"", record.service.as_deref());
    address(out, b",\"upstream_host\":\"", record.endpoint);
    if let Some(protocol) = record.upstream_protocol {
        plain(out, b",\"upstream_protocol\":\"", protocol.as_str());
    }
    optional(out, b",\"upstream_peer_id\":\"", record.upstream_id.as_deref());
    address(out, b",\"downstream_remote_address\":\"", record.peer);
    optional(out, b",\"downstream_peer_id\":\"", record.peer_id.as_deref());
    if !record.text.request_id().is_empty() {
        string(out, b",\"request_id\":\"", record.text.request_id());
    }
    if let Some(trace) = record.trace_id {
        out.extend_from_slice(b",\"trace_id\":\"");
        out.extend_from_slice(&trace.hex());
        out.push(b'"');
    }
    if !record.text.user_agent().is_empty() {
        string(out, b",\"user_agent\":\"", record.text.user_agent());
    }
    optional(out, b",\"revision\":\"", record.revision.as_deref());
}

fn digit(n: u32) -> u8 {
    b'0' + u8::try_from(n).expect("a decimal digit")
}

fn optional(out: &mut Vec<u8>, key: &[u8], value: Option<&str>) {
    if let Some(value) = value {
        string(out, key, value.as_bytes());
    }
}

/// A value that is known to need no escape.
fn plain(out: &mut Vec<u8>, key: &[u8], value: &str) {
    out.extend_from_slice(key);
    out.extend_from_slice(value.as_bytes());
    out.push(b'"');
}

fn number(out: &mut Vec<u8>, key: &[u8], value: u64) {
    out.extend_from_slice(key);
    decimal(out, value);
}

fn decimal(out: &mut Vec<u8>, mut value: u64) {
    // Most numbers of a line are octets and statuses: copying three bytes costs more than pushing them.
    if let Ok(small @ ..1000) = u32::try_from(value) {
        if small >= 100 {
            out.push(digit(small / 100));
        }
        if small >= 10 {
            out.push(digit(small / 10 % 10));
        }
        out.push(digit(small % 10));
        return;
    }
    let mut digits = [0_u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + u8::try_from(value % 10).expect("a decimal digit");
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// Milliseconds with three decimals.
fn millis(out: &mut Vec<u8>, key: &[u8], value: Duration) {
    let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    number(out, key, micros / 1000);
    let rest = u32::try_from(micros % 1000).expect("less than a thousand");
    out.extend_from_slice(&[b'.', digit(rest / 100), digit(rest / 10 % 10), digit(rest % 10)]);
}

fn address(out: &mut Vec<u8>, key: &[u8], value: Option<SocketAddr>) {
    let Some(value) = value else { return };
    out.extend_from_slice(key);
    if let SocketAddr::V4(v4) = value {
        // Formatting through `Display` costs as much as the rest of the line.
        for (index, octet) in v4.ip().octets().into_iter().enumerate() {
            if index > 0 {
                out.push(b'.');
            }
            decimal(out, u64::from(octet));
        }
        out.push(b':');
        decimal(out, u64::from(v4.port()));
    } else {
        write!(out, "{value}").expect("a Vec takes everything");
    }
    out.push(b'"');
}

/// What a byte becomes inside a JSON string: 0 itself, 1 not ASCII, else the letter after the backslash.
const ESCAPES: [u8; 256] = {
    let mut table = [0_u8; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte {
            0x08 => b'b',
            0x09 => b't',
            0x0A => b'n',
            0x0C => b'f',
            0x0D => b'r',
            0x22 => b'"',
            0x5C => b'\\',
            0..0x20 | 0x7F => b'u',
            0x80.. => 1,
            _ => 0,
        };
        byte += 1;
    }
    table
};

/// A string value, escaped as RFC 8259 (section 7) asks; bytes that are not UTF-8 become U+FFFD.
fn string(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.extend_from_slice(key);
    if is_plain(value) {
        out.extend_from_slice(value);
    } else {
        for chunk in value.utf8_chunks() {
            escape(out, chunk.valid());
            if !chunk.invalid().is_empty() {
                out.extend_from_slice("\u{FFFD}".as_bytes());
            }
        }
    }
    out.push(b'"');
}

/// Whether every byte stands for itself: eight at a time, since nearly every text of nearly every request does.
fn is_plain(value: &[u8]) -> bool {
    let Some(last) = value.last_chunk::<8>() else {
        return value.iter().all(|&b| ESCAPES[usize::from(b)] == 0);
    };
    // The last eight may overlap the word before: looking twice is cheaper than a remainder.
    let words = value.as_chunks::<8>().0.iter().chain([last]);
    words.fold(0, |odd, word| odd | odd_bytes(u64::from_le_bytes(*word))) & repeat(0x80) == 0
}

const fn repeat(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Has a byte's high bit set if one of the eight needs a look (a control character, a quote, a backslash, DEL, not ASCII).
/// The bits above such a byte may be set wrongly, which does not matter to a yes or no.
fn odd_bytes(word: u64) -> u64 {
    let below = |word: u64, n: u8| word.wrapping_sub(repeat(n)) & !word;
    word | below(word, 0x20)
        | below(word ^ repeat(b'"'), 1)
        | below(word ^ repeat(b'\\'), 1)
        | below(word ^ repeat(0x7F), 1)
}

#[cold]
fn escape(out: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        match ESCAPES[usize::from(byte)] {
            0 | 1 => out.push(byte),
            b'u' => write!(out, "\\u{byte:04x}").expect("a Vec takes everything"),
            letter => out.extend_from_slice(&[b'\\', letter]),
        }
    }
}
