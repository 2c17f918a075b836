//! HTTP/1.1 requests at a fixed rate, whatever the answers do.
//!
//! A request is due at its time; when every connection waits for an answer it is sent later, and its latency still
//! counts from when it was due. So a proxy that stalls pays for all that came meanwhile (no coordinated omission).

use std::collections::VecDeque;
use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;

use crate::figures::Latencies;

/// How long answers may be outstanding after the last request.
const PATIENCE: Duration = Duration::from_secs(5);
const ROOM: usize = 64 << 10;

pub struct Plan {
    pub address: String,
    pub host: String,
    pub path: String,
    pub connections: usize,
    /// Requests per second, over all connections.
    pub rate: f64,
    pub seconds: f64,
}

struct Connection {
    stream: TcpStream,
    due: Instant,
    buffer: Vec<u8>,
    filled: usize,
}

struct Load {
    connections: Vec<Connection>,
    request: Vec<u8>,
    /// In turn, so that all are used alike.
    idle: VecDeque<usize>,
    waiting: VecDeque<Instant>,
    latencies: Latencies,
    bytes: u64,
    epoll: OwnedFd,
}

pub fn run(plan: &Plan) -> Result<(), Box<dyn Error>> {
    let mut load = Load::new(plan)?;
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(plan.seconds);
    let due = |number: u32| start + Duration::from_secs_f64(f64::from(number) / plan.rate);
    let mut number = 0;
    let mut events = Vec::with_capacity(plan.connections);
    loop {
        let now = Instant::now();
        while due(number) <= now && due(number) < end {
            load.waiting.push_back(due(number));
            number += 1;
        }
        load.send()?;
        let all_sent = due(number) >= end;
        if all_sent && load.waiting.is_empty() && load.idle.len() == plan.connections {
            break;
        }
        if now > end + PATIENCE {
            break;
        }
        let wait = if all_sent { PATIENCE } else { due(number).saturating_duration_since(now) };
        events.clear();
        let wait = Timespec { tv_sec: wait.as_secs() as _, tv_nsec: wait.subsec_nanos().into() };
        epoll::wait(&load.epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait))?;
        for event in &events {
            load.receive(usize::try_from(event.data.u64())?)?;
        }
    }
    let answered = load.latencies.len();
    let unanswered = load.unanswered();
    let bytes = load.bytes;
    let micros = plan.seconds * 1e6;
    let latencies = load.latencies.members();
    println!(
        "RESULT {{\"requests\":{answered},\"unanswered\":{unanswered},\"bytes\":{bytes},\"micros\":{micros:.0},{latencies}}}"
    );
    Ok(())
}

impl Load {
    fn new(plan: &Plan) -> Result<Self, Box<dyn Error>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut connections = Vec::with_capacity(plan.connections);
        for index in 0..plan.connections {
            let stream = TcpStream::connect(&plan.address)?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            epoll::add(&epoll, &stream, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
            connections.push(Connection { stream, due: Instant::now(), buffer: vec![0; ROOM], filled: 0 });
        }
        let Plan { host, path, .. } = plan;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bench\r\n\r\n").into_bytes();
        let idle = (0..plan.connections).collect();
        Ok(Self {
            connections,
            request,
            idle,
            waiting: VecDeque::new(),
            latencies: Latencies::default(),
            bytes: 0,
            epoll,
        })
    }

    fn send(&mut self) -> Result<(), Box<dyn Error>> {
        while let (Some(&due), Some(&index)) = (self.waiting.front(), self.idle.front()) {
            self.waiting.pop_front();
            self.idle.pop_front();
            let connection = &mut self.connections[index];
            connection.due = due;
            // It is smaller than any socket's buffer, and the one before it has been answered.
            connection.stream.write_all(&self.request)?;
        }
        Ok(())
    }

    fn receive(&mut self, index: usize) -> Result<(), Box<dyn Error>> {
        let connection = &mut self.connections[index];
        match connection.stream.read(&mut connection.buffer[connection.filled..]) {
            Ok(0) => return Err("a connection was closed".into()),
            Ok(count) => connection.filled += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let Some(whole) = answer_size(&connection.buffer[..connection.filled])? else { return Ok(()) };
        if connection.filled < whole {
            return Ok(());
        }
        if connection.filled > whole {
            return Err("an answer is longer than its Content-Length".into());
        }
        connection.filled = 0;
        self.bytes += whole as u64;
        self.latencies.add(connection.due.elapsed());
        self.idle.push_back(index);
        Ok(())
    }

    /// What was due and has no answer counts with the time that it has waited: leaving it out would flatter.
    fn unanswered(&mut self) -> usize {
        let busy = (0..self.connections.len()).filter(|index| !self.idle.contains(index));
        let dues: Vec<_> =
            busy.map(|index| self.connections[index].due).chain(self.waiting.iter().copied()).collect();
        for due in &dues {
            self.latencies.add(due.elapsed());
        }
        dues.len()
    }
}

/// Bytes of head and body once the head is whole; anything but 200 is an error.
fn answer_size(data: &[u8]) -> Result<Option<usize>, Box<dyn Error>> {
    let Some(head) = data.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&data[..head])?;
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200 ") {
        return Err(format!("the status is {status:?}").into());
    }
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .ok_or("an answer has no Content-Length")?
        .1;
    let whole = head + 4 + length.trim().parse::<usize>()?;
    if whole > ROOM {
        return Err(format!("an answer of {whole} bytes is larger than the load's buffer").into());
    }
    Ok(Some(whole))
}
