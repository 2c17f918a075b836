//! Bodies both ways at the same time, in one task: whatever arrives is moved on as far as the other side has room, and
//! what was gathered is written once before waiting.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use meshwork_base::{Clock, Tick};
use meshwork_decision::Cause;
use meshwork_http1::{BodyLength, Fields, KnownName, ResponseHead};
use meshwork_telemetry::Record;

use super::answer;
use super::attempt::Attempts;
use super::body::{RequestBody, Side};
use super::bulk::{Bulk, Moved};
use super::deadline::Deadlines;
use super::journey::Journey;
use super::{reply, shape};
use crate::connections::{Order, Phase};
use crate::downstream::Down;
use crate::downstream::connection::Conn;
use crate::error::{Failure, Fault};
use crate::http::stream::{Frame, StreamError};
use crate::recorder::Moves;
use crate::upstream::Exchange;

/// Whoever takes nothing for so long may find that its endpoint has given up, however long it has read before.
const PATIENCE: Duration = Duration::from_secs(5);
/// An answer of which nothing has come for so long stands still.
const STILL: Duration = Duration::from_secs(1);
/// Pauses of a reader that are shorter are part of reading.
const PAUSE: Duration = Duration::from_secs(1);

/// What interrupts an exchange from outside: its time, the caller leaving, the process stopping.
pub(crate) fn poll_interrupted(
    cx: &mut Context<'_>,
    conn: &Conn,
    down: &mut Down<'_>,
    deadlines: &mut Deadlines,
) -> Poll<Failure> {
    if let Poll::Ready(cause) = deadlines.poll(cx, &conn.worker.timers) {
        return Poll::Ready(Failure::local(cause));
    }
    if let Poll::Ready(error) = down.poll_gone(cx) {
        return Poll::Ready(Failure::of_downstream(&error));
    }
    match conn.entry.order() {
        Some(Order::TimedOut(Phase::Exchange)) => {
            return Poll::Ready(Failure::local(Cause::StreamIdleTimeout));
        }
        Some(Order::TimedOut(Phase::Body)) => {
            return Poll::Ready(conn.worker.late(Cause::RequestBodyTimeout, Phase::Body));
        }
        Some(Order::Close(cause)) => return Poll::Ready(Failure::closed(cause, conn.caller.is_some())),
        Some(Order::Drain | Order::TimedOut(_) | Order::Shed) | None => {}
    }
    conn.entry.watch(cx);
    Poll::Pending
}

/// The same of a request, of which those hear meanwhile who ask for it; how much of it has moved is looked at for them alone.
pub(crate) fn poll_under_way(
    cx: &mut Context<'_>,
    journey: &Journey<'_>,
    down: &mut Down<'_>,
    deadlines: &mut Deadlines,
    moves: impl FnOnce(&Record, &Down<'_>) -> Moves,
) -> Poll<Failure> {
    let conn = journey.conn();
    if conn.entry.is_asked() {
        journey.tell_under_way(&moves(journey.record, down));
    }
    poll_interrupted(cx, conn, down, deadlines)
}

/// Sends the request's body until the final head of the response is there. Informational heads are passed on.
///
/// # Errors
/// Either side broke, or the exchange was interrupted.
pub(crate) async fn until_head(
    journey: &Journey<'_>,
    exchange: &mut Exchange,
    down: &mut Down<'_>,
    body: &mut RequestBody<'_>,
    response: &mut ResponseHead,
    deadlines: &mut Deadlines,
) -> Result<(), Failure> {
    let conn = journey.conn();
    let mut sent = Some(conn.worker.now());
    let limits = conn.worker.shared.settings.limits;
    let mut sending: Result<(), StreamError> = Ok(());
    poll_fn(|cx| {
        let received = body.received;
        if sending.is_ok() {
            match body.poll_pump(cx, down, exchange) {
                Ok(()) => {}
                Err(Side::Down(error)) => return Poll::Ready(Err(Failure::of_downstream(&error))),
                // An upstream may answer and close without reading the request: its answer counts.
                Err(Side::Up(error)) => sending = Err(error),
            }
        }
        loop {
            match exchange.poll_head(cx, &limits, response) {
                Poll::Ready(Ok(())) if response.is_informational() => {
                    sent = None;
                    if let Err(error) = down.send_interim(response) {
                        return Poll::Ready(Err(Failure::of_downstream(&error)));
                    }
                    if let Poll::Ready(Err(error)) = down.poll_flush(cx) {
                        return Poll::Ready(Err(Failure::of_downstream(&error)));
                    }
                }
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => {
                    // Of a stream that its endpoint has reset the body hears that it is closed, and only the response why.
                    let of_body = std::mem::replace(&mut sending, Ok(())).err();
                    let error = of_body.filter(|told| !matches!(told, StreamError::Closed)).unwrap_or(error);
                    let stale = exchange.is_stale(sent, conn.worker.now());
                    return Poll::Ready(Err(Failure::of_upstream(&error, false, stale)));
                }
                Poll::Pending => break,
            }
        }
        if body.received != received {
            conn.entry.progress(conn.worker.now());
        }
        if body.has_ended() {
            deadlines.asked();
        }
        poll_under_way(cx, journey, down, deadlines, |_, down| body.moves(down, exchange)).map(Err)
    })
    .await
}

/// Passes the response on to its end, and what is left of the request's body with it.
///
/// # Errors
/// Either side broke, or the exchange was interrupted; the response may have begun.
pub(crate) async fn response(
    attempts: &mut Attempts<'_>,
    mut exchange: Exchange,
    down: &mut Down<'_>,
    body: &mut RequestBody<'_>,
    head: &ResponseHead,
    journey: &mut Journey<'_>,
    deadlines: &mut Deadlines,
) -> Result<(), Failure> {
    let conn = journey.conn();
    // Whoever has answered was not silent.
    conn.entry.progress(conn.worker.now());
    body.settle();
    if matches!(down, Down::H2(_)) {
        exchange.share();
    }
    let ended = exchange.is_end();
    conn.say_whether_last(down);
    if let Err(error) = down.send_head(head, ended) {
        let failure = Failure::of_downstream(&error);
        attempts.ended(if ended { Ok(()) } else { Err(&failure) }, journey.record.grpc_status);
        return Err(failure);
    }
    if ended {
        down.end(None);
    }
    // Its last bytes may not have been written when the response came.
    let request_open = !body.is_sent();
    let mut passing = Passing { ended, request_open, bulk: Bulk::default(), reader: Reader::default() };
    let moved = poll_fn(|cx| {
        let before = (body.received, journey.record.bytes_sent);
        let Some(is_taken) = passing.turn(cx, &mut exchange, down, body, attempts, journey)? else {
            return Poll::Ready(Ok(()));
        };
        let moved = before.1 != journey.record.bytes_sent;
        if moved || before.0 != body.received {
            let now = conn.worker.now();
            conn.entry.progress(now);
            if moved {
                attempts.answer_goes_on(now);
                passing.reader.came = Some(now);
            }
        }
        passing.reader.turned(is_taken, moved, || conn.worker.now());
        attempts.poll_patience(cx);
        let reader = &passing.reader;
        let moves = |record: &Record, _: &Down<'_>| body.moves_back(record, reader.pauses(conn.worker.now()));
        poll_under_way(cx, journey, down, deadlines, moves).map(Err)
    })
    .await;
    journey.record.bytes_received = body.received;
    match moved {
        Ok(()) if body.is_sent() => exchange.finish(conn.worker.now()),
        Ok(()) => exchange.abort(),
        Err(failure) => {
            let by_rule = exchange.is_ended_by_rule(&failure, conn.worker.shared.clock.wall());
            let mut failure = deadlines.or_over(failure);
            // A time of ours that is over has its own rules.
            let by_rule = by_rule && failure.fault == Fault::Upstream;
            failure.is_hasty |= by_rule || passing.reader.excuses(&failure, body, head, attempts, journey);
            exchange.abort();
            // What has come whole is whole, whoever has left before it was read.
            let ended = if passing.ended { Ok(()) } else { Err(&failure) };
            attempts.ended(ended, journey.record.grpc_status);
            return Err(failure);
        }
    }
    journey.finish_answered(head);
    Ok(())
}

/// A response that is passed on.
struct Passing {
    /// Its end is here.
    ended: bool,
    request_open: bool,
    bulk: Bulk,
    reader: Reader,
}

impl Passing {
    /// Moves what there is and what there is room for: whether its caller has taken that. `None`: all of it has been moved.
    #[inline]
    fn turn(
        &mut self,
        cx: &mut Context<'_>,
        exchange: &mut Exchange,
        down: &mut Down<'_>,
        body: &mut RequestBody<'_>,
        attempts: &mut Attempts<'_>,
        journey: &mut Journey<'_>,
    ) -> Result<Option<bool>, Failure> {
        let is_taken = loop {
            if self.request_open && body.poll_pump(cx, down, exchange).is_err() {
                // The response goes on without it; the connection cannot be used again.
                self.request_open = false;
            }
            let flushed = self.bulk.is_under_way()
                || poll_response(cx, exchange, down, &mut self.ended, &mut self.bulk, journey)?;
            if self.ended {
                // However long its caller takes to read what is here.
                let drained = journey.was_drained.then(|| Failure::local(Cause::Draining));
                attempts.ended(drained.as_ref().map_or(Ok(()), Err), journey.record.grpc_status);
                if flushed {
                    return Ok(None);
                }
            }
            if flushed && self.bulk.takes_over(exchange, down, journey) {
                match self.bulk.poll(cx, exchange, down, journey)? {
                    Moved::All => {
                        attempts.ended(Ok(()), journey.record.grpc_status);
                        down.end(None);
                        return Ok(None);
                    }
                    Moved::Some => break !self.bulk.is_under_way(),
                }
            }
            self.bulk.rest();
            // After a full flush there is room again: what the upstream has ready is taken in this turn.
            let is_taken = flushed && down.has_room();
            if !is_taken || self.ended || !shape::may_pass(cx, journey) {
                break is_taken;
            }
            if !poll_ready_frame(cx, exchange, down, &mut self.ended, journey)? {
                break is_taken;
            }
        };
        Ok(Some(is_taken))
    }
}

/// Who does not read what there is keeps its endpoint waiting, and no endpoint waits for ever.
#[derive(Default)]
struct Reader {
    /// Since when it has taken nothing of what there is.
    waits: Option<Tick>,
    /// It has taken nothing for [`PATIENCE`] before.
    was_away: bool,
    /// Its [pauses](PAUSE) before, together.
    paused: Duration,
    /// When something of the answer came last.
    came: Option<Tick>,
}

impl Reader {
    /// It has taken all that there was, or not; and something of it, since more has come up behind that.
    fn turned(&mut self, is_taken: bool, moved: bool, now: impl Fn() -> Tick) {
        if (is_taken || moved)
            && let Some(since) = self.waits.take()
        {
            let pause = now().since(since);
            self.was_away |= pause >= PATIENCE;
            self.paused += if pause >= PAUSE { pause } else { Duration::ZERO };
        }
        if !is_taken {
            self.waits.get_or_insert_with(now);
        }
    }

    /// Whether it is waited for: who has room for less than there is, and takes some of it all the while, reads.
    fn pauses(&self, now: Tick) -> bool {
        self.waits.is_some_and(|since| now.since(since) >= PAUSE)
    }

    /// Whether whoever has waited for it, since this moment, has waited for so long that it may have given up.
    fn was_waited_for(&self, since: Option<Tick>, now: Tick) -> bool {
        let pause = self.waits.map_or(Duration::ZERO, |since| now.since(since));
        let most = |begun: Tick| {
            let paused = self.paused + pause;
            paused >= PAUSE && paused > now.since(begun) / 2
        };
        self.was_away || pause >= PATIENCE || since.is_some_and(most)
    }

    /// Whether the answer, which has begun at this moment, does not stand still: to be whole in time there is too much of it.
    fn flows(&self, begun: Option<Tick>, now: Tick) -> bool {
        let (Some(came), Some(begun)) = (self.came, begun) else { return false };
        now.since(came) < STILL.min(now.since(begun) / 2)
    }

    /// Whether it is not its endpoint's fault that an answer broke off: that has not got the whole request, or its answer was
    /// not read. What is our own limit is nobody's fault either where we slow it down, where nothing need come, or while it comes.
    #[cold]
    fn excuses(
        &self,
        failure: &Failure,
        body: &RequestBody<'_>,
        head: &ResponseHead,
        attempts: &Attempts<'_>,
        journey: &mut Journey<'_>,
    ) -> bool {
        let (now, begun) = (journey.conn().worker.now(), attempts.answered());
        let is_limit_alone = match failure.cause {
            // Who does not say how much comes may have nothing to say.
            Cause::StreamIdleTimeout => !matches!(head.body, BodyLength::Known(_)),
            _ => self.flows(begun, now),
        };
        if journey.is_grpc() {
            return failure.fault == Fault::Local && is_limit_alone;
        }
        let is_ours = is_limit_alone
            || self.waits.is_some()
            || shape::is_slowed(journey)
            || answer::may_be_silent(head);
        !body.is_sent() || self.was_waited_for(begun, now) || failure.fault == Fault::Local && is_ours
    }
}

/// Takes frames as long as there are any and there is room, then flushes; true when nothing is left to write.
fn poll_response(
    cx: &mut Context<'_>,
    exchange: &mut Exchange,
    down: &mut Down<'_>,
    ended: &mut bool,
    bulk: &mut Bulk,
    journey: &mut Journey<'_>,
) -> Result<bool, Failure> {
    while !*ended
        && down.has_room()
        && shape::may_pass(cx, journey)
        && !bulk.takes_over(exchange, down, journey)
        && poll_ready_frame(cx, exchange, down, ended, journey)?
    {}
    match down.poll_flush(cx) {
        Poll::Ready(Ok(())) => Ok(true),
        Poll::Ready(Err(error)) => Err(Failure::of_downstream(&error)),
        Poll::Pending => Ok(false),
    }
}

/// Moves one frame if it is there.
fn poll_ready_frame(
    cx: &mut Context<'_>,
    exchange: &mut Exchange,
    down: &mut Down<'_>,
    ended: &mut bool,
    journey: &mut Journey<'_>,
) -> Result<bool, Failure> {
    let frame = match shape::held(journey) {
        Some(rest) => Poll::Ready(Ok(Frame::Data(rest))),
        None => exchange.poll_frame(cx),
    };
    match frame {
        Poll::Ready(Ok(Frame::Data(mut data))) => {
            let whole = shape::piece(&mut data, journey);
            journey.record.bytes_sent += data.len() as u64;
            down.queue(data);
            if whole && exchange.is_end() {
                // The end leaves with the last bytes instead of in a frame of its own.
                down.end(None);
                *ended = true;
            }
            Ok(true)
        }
        Poll::Ready(Ok(Frame::End(mut trailers))) => {
            if let Some(trailers) = &mut trailers {
                journey.grpc_status(trailers.known(KnownName::GrpcStatus));
                journey.was_drained = reply::is_of_drain(trailers) && hear_of_drain(exchange, trailers);
            }
            // One who has said nothing else there would end by a block without fields, at which some stumble.
            down.end(trailers.filter(|fields| !fields.is_empty()));
            *ended = true;
            Ok(true)
        }
        Poll::Ready(Err(error)) => {
            // A caller who gets no byte of a response takes its request for one that nobody saw, and may repeat it. What
            // breaks here, too, is told as the upstream's failure: it was first.
            let _ = down.poll_flush(cx);
            Err(Failure::of_upstream(&error, true, false))
        }
        Poll::Pending => Ok(false),
    }
}

/// Whether whoever says that the end of a drain has ended an answer is a proxy of the mesh. It does not go on: an upstream in the mesh
/// has no caller there.
#[cold]
fn hear_of_drain(exchange: &Exchange, trailers: &mut Fields) -> bool {
    reply::forget_drain(trailers);
    exchange.is_in_mesh()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader, of an answer that begins at 0, for whom more has come up at these moments, in milliseconds, and who never takes all.
    fn behind(moved: &[u64]) -> Reader {
        let mut reader = Reader::default();
        for at in moved {
            reader.turned(false, true, || ms(*at));
        }
        reader
    }

    fn ms(ms: u64) -> Tick {
        Tick::ZERO.after(Duration::from_millis(ms))
    }

    #[test]
    fn an_answer_flows_until_nothing_has_come_for_a_second_or_half_of_its_time() {
        let flows = |begun, came, now| Reader { came, ..Reader::default() }.flows(Some(begun), now);
        assert!(flows(ms(0), Some(ms(5_000)), ms(5_999)) && !flows(ms(0), Some(ms(5_000)), ms(6_000)));
        assert!(flows(ms(100), Some(ms(201)), ms(300)), "in a short time too");
        assert!(!flows(ms(100), Some(ms(200)), ms(300)));
        assert!(!flows(ms(0), None, ms(10)), "nothing has come behind its head");
        assert!(!flows(ms(0), Some(ms(0)), ms(0)));
    }

    #[test]
    fn who_reads_slowly_has_kept_nobody_waiting() {
        let steady: Vec<u64> = (0..20).map(|turn| turn * 900).collect();
        let reader = behind(&steady);
        assert!(!reader.was_waited_for(Some(Tick::ZERO), ms(20 * 900)));
        assert!(!Reader::default().was_waited_for(Some(Tick::ZERO), ms(60_000)), "there was nothing to read");
    }

    #[test]
    fn who_takes_some_of_what_there_is_all_the_while_reads_however_much_is_left() {
        let steady: Vec<u64> = (0..600).map(|turn| turn * 10).collect();
        let reader = behind(&steady);
        assert!(!reader.pauses(ms(5_990)) && !reader.pauses(ms(5_990 + 999)));
        assert!(reader.pauses(ms(5_990 + 1_000)));
        assert!(!Reader::default().pauses(ms(60_000)), "there is nothing to read");
    }

    #[test]
    fn who_has_read_nothing_for_long_has_kept_an_endpoint_waiting_whatever_was_before() {
        let steady: Vec<u64> = (0..40).map(|turn| turn * 900).collect();
        let mut reader = behind(&steady);
        let last = 39 * 900;
        assert!(!reader.was_waited_for(Some(Tick::ZERO), ms(last + 4_999)));
        assert!(reader.was_waited_for(Some(Tick::ZERO), ms(last + 5_000)));
        reader.turned(true, true, || ms(last + 5_000));
        assert!(reader.was_waited_for(Some(Tick::ZERO), ms(last + 60_000)), "it may have given up then");
    }

    #[test]
    fn who_has_read_nothing_for_most_of_the_time_has_kept_it_waiting_too() {
        let reader = behind(&[0]);
        assert!(!reader.was_waited_for(Some(Tick::ZERO), ms(999)));
        assert!(reader.was_waited_for(Some(Tick::ZERO), ms(1_000)));
        let mut reader = behind(&[0, 900, 1_800]);
        assert!(!reader.was_waited_for(Some(Tick::ZERO), ms(3_600)), "half of it");
        assert!(reader.was_waited_for(Some(Tick::ZERO), ms(3_602)));
        reader.turned(true, true, || ms(3_602));
        assert!(reader.was_waited_for(Some(Tick::ZERO), ms(3_602)), "in pauses that are over, too");
        assert!(!reader.was_waited_for(Some(Tick::ZERO), ms(10_000)));
    }
}
