//! Packets as `tcpdump` caught them, put together to the bytes of each connection.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::support::{exchange, until};

/// A running capture; ended when dropped.
pub(crate) struct Capture {
    tcpdump: Child,
    folder: TempDir,
}

/// What one side of a connection has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

/// The bytes of all connections, and who opened each.
#[derive(Default)]
pub(crate) struct Traffic {
    pub(crate) sent: BTreeMap<Way, Vec<u8>>,
    /// From the client to the server.
    pub(crate) opened: Vec<Way>,
}

impl Capture {
    /// Catches the TCP packets of sixteen addresses. `None` when the calling test is to return.
    #[track_caller]
    pub(crate) fn start(base: Ipv4Addr) -> Option<Self> {
        let tcpdump = meshwork_testkit::tool("tcpdump")?;
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c, d] = base.octets();
        let filter = format!("tcp and net {a}.{b}.{c}.{}/28", d & 0xf0);
        let said = std::fs::File::create(folder.path().join("said")).unwrap();
        let mut command = Command::new(tcpdump);
        // A user of its own could not write into our folder. In batches, since a slot for each packet would be as large
        // as the largest packet, and the buffer full at once on a busy machine.
        command.args(["-i", "lo", "-n", "-U", "-B", "32768", "-s", "0", "-Z", "root", "-w"]);
        command.arg(folder.path().join("packets")).arg(filter);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn().unwrap();
        let mut capture = Self { tcpdump: child, folder };
        let ready = until("tcpdump listens, or says why not", || {
            let said = capture.said();
            let ended = capture.tcpdump.try_wait().unwrap().is_some();
            (ended || said.contains("listening on")).then_some(!ended)
        });
        if !ready {
            meshwork_testkit::skip(&format!("packets cannot be captured: {}", capture.said().trim()));
            return None;
        }
        Some(capture)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("said")).unwrap_or_default()
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("packets")
    }

    /// Ends it when everything until now is in it, which a last request to this place proves.
    pub(crate) fn end(mut self, last: SocketAddr) -> Traffic {
        const LAST: &str = "the-last-request-of-the-capture";
        exchange(
            last,
            format!("GET /{LAST} HTTP/1.1\r\nHost: {last}\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .expect("it answers");
        until("the last request is captured", || {
            contains(&std::fs::read(self.file()).unwrap(), LAST.as_bytes()).then_some(())
        });
        crate::support::platform::signal("INT", self.tcpdump.id().into());
        self.tcpdump.wait().unwrap();
        let said = self.said();
        assert!(said.contains("\n0 packets dropped by kernel"), "{said}");
        Traffic::read(&self.file())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop(self.tcpdump.kill());
        drop(self.tcpdump.wait());
    }
}

pub(crate) fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// A segment of TCP (RFC 9293) over IPv4 over Ethernet.
struct Segment<'a> {
    way: Way,
    sequence: u32,
    flags: u8,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    fn read(frame: &'a [u8]) -> Self {
        const ETHERNET: usize = 14;
        assert_eq!(frame[12..14], [8, 0], "IPv4");
        let packet = &frame[ETHERNET..];
        let length = usize::from(number(&packet[2..4]));
        let tcp = &packet[usize::from(packet[0] & 0x0f) * 4..length];
        let address =
            |at: usize| Ipv4Addr::from([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
        let from = SocketAddr::from((address(12), number(&tcp[0..2])));
        let to = SocketAddr::from((address(16), number(&tcp[2..4])));
        Self {
            way: Way { from, to },
            sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
            flags: tcp[13],
            payload: &tcp[usize::from(tcp[12] >> 4) * 4..],
        }
    }

    const fn is_syn(&self) -> bool {
        self.flags & 0x02 != 0
    }

    const fn is_ack(&self) -> bool {
        self.flags & 0x10 != 0
    }
}

/// A number in network byte order.
pub(crate) fn number(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

impl Traffic {
    /// Reads a file of libpcap (version 2.4, written by this machine).
    fn read(file: &Path) -> Self {
        const HEADER: usize = 24;
        const RECORD: usize = 16;
        let bytes = std::fs::read(file).unwrap();
        assert_eq!(bytes[20], 1, "loopback is captured as Ethernet");
        let mut traffic = Self::default();
        // First the beginnings: segments are counted from there.
        let mut begins = BTreeMap::new();
        let mut segments = Vec::new();
        let mut rest = &bytes[HEADER..];
        while rest.len() >= RECORD {
            let length = u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]) as usize;
            let segment = Segment::read(&rest[RECORD..RECORD + length]);
            rest = &rest[RECORD + length..];
            if segment.is_syn() {
                begins.insert(segment.way, segment.sequence.wrapping_add(1));
                if !segment.is_ack() {
                    traffic.opened.push(segment.way);
                }
            }
            segments.push(segment);
        }
        let mut pieces: BTreeMap<Way, BTreeMap<u32, &[u8]>> = BTreeMap::new();
        for segment in segments.iter().filter(|segment| !segment.payload.is_empty()) {
            let begin = begins.get(&segment.way).expect("every connection began after the capture");
            let at = segment.sequence.wrapping_sub(*begin);
            let kept = pieces.entry(segment.way).or_default().entry(at).or_default();
            // Sent again, perhaps with more.
            if segment.payload.len() > kept.len() {
                *kept = segment.payload;
            }
        }
        traffic.sent = pieces.into_iter().map(|(way, pieces)| (way, joined(way, &pieces))).collect();
        traffic
    }
}

fn joined(way: Way, pieces: &BTreeMap<u32, &[u8]>) -> Vec<u8> {
    let mut whole = Vec::new();
    for (at, piece) in pieces {
        let known = whole.len().checked_sub(*at as usize);
        let known = known.unwrap_or_else(|| panic!("a piece of {way:?} is missing before byte {at}"));
        whole.extend_from_slice(piece.get(known..).unwrap_or_default());
    }
    whole
}
