//! A request and its response, read, edited and written, allocate nothing once the connection has its memory.

#![expect(unsafe_code, reason = "a global allocator is the only way to count; it forwards to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use meshwork_http1::{
    BodyDecoder, BodyLength, ConnectionOption, HeadScan, KnownName, Limits, Parsed, RequestHead, RequestKind,
    ResponseHead, Step, parse_request, parse_response, strip_hop_by_hop, write_chunk, write_last_chunk,
    write_request_head, write_response_head,
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is the system allocator's, with the caller's own arguments; counting touches a constant-initialised
// thread local, which does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System` above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const REQUEST: &[u8] = b"POST /cart?item=5 HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: test/1.0\r\nAccept: */*\r\n\
    Connection: keep-alive\r\nTE: trailers\r\nCookie: a=b; c=d\r\nX-Own: 1\r\nTransfer-Encoding: chunked\r\n\r\n\
    5;x=y\r\nhello\r\n0\r\n\r\n";
const RESPONSE: &[u8] =
    b"HTTP/1.1 404 Not Found\r\nServer: test\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nnone";

struct Connection {
    scan: HeadScan,
    request: RequestHead,
    response: ResponseHead,
    wire: Vec<u8>,
}

impl Connection {
    fn exchange(&mut self) {
        let limits = Limits::default();
        let parsed = parse_request(REQUEST, &limits, &mut self.scan, &mut self.request);
        let Ok(Parsed::Done { consumed }) = parsed else { panic!("a whole request: {parsed:?}") };
        strip_hop_by_hop(&mut self.request.fields);
        self.request.fields.set_known(KnownName::XForwardedFor, "192.0.2.1").expect("a good value");
        self.request.fields.set("x-own", "2").expect("a good value");
        assert_eq!(self.request.fields.get("x-own"), Some(&b"2"[..]));
        self.wire.clear();
        let (method, target) = (&self.request.method, self.request.target.path_and_query());
        let connection = ConnectionOption::None;
        write_request_head(
            &mut self.wire,
            method,
            target,
            &self.request.fields,
            self.request.body,
            connection,
        )
        .expect("a good target");

        let mut decoder = BodyDecoder::new(self.request.body);
        let mut rest = &REQUEST[consumed..];
        loop {
            match decoder.step(rest, &limits).expect("a good body") {
                Step::Data { skip, len } => {
                    write_chunk(&mut self.wire, &rest[skip..skip + len]);
                    rest = &rest[skip + len..];
                }
                Step::End { .. } => break,
                Step::NeedMore { .. } => panic!("the body is whole"),
            }
        }
        write_last_chunk(&mut self.wire, decoder.take_trailers().as_ref());

        parse_response(RESPONSE, &limits, RequestKind::Other, &mut self.scan, &mut self.response)
            .expect("a good response");
        strip_hop_by_hop(&mut self.response.fields);
        self.response.fields.remove("server");
        let body = BodyLength::Known(4);
        let (status, reason) = (self.response.status, &self.response.reason[..]);
        write_response_head(&mut self.wire, status, reason, &self.response.fields, body, connection);
    }
}

#[test]
fn the_second_exchange_of_a_connection_allocates_nothing() {
    let mut connection = Connection {
        scan: HeadScan::default(),
        request: RequestHead::new(),
        response: ResponseHead::new(),
        wire: Vec::new(),
    };
    connection.exchange();
    let first = ALLOCATIONS.get();
    assert!(first > 0, "the counter counts");
    for _ in 0..100 {
        connection.exchange();
    }
    assert_eq!(ALLOCATIONS.get(), first);
}
