//! A request's place in its trace (W3C Trace Context, level 1). Where no spans are exported nothing here does anything:
//! `traceparent` and `tracestate` are passed on as they came.

use meshwork_http1::{FieldError, Fields, KnownName};
use meshwork_telemetry::trace::{SpanId, trace_state};
use meshwork_telemetry::{Record, TraceContext, Traced};

use crate::downstream::connection::Conn;

/// The caller's place in the trace. Two of them are none: which one would it be?
pub(crate) fn caller(fields: &Fields) -> Option<TraceContext> {
    let mut all = fields.known_all(KnownName::TraceParent);
    let first = all.next()?;
    TraceContext::parse(first).filter(|_| all.next().is_none())
}

/// Finds out which trace a request belongs to. Gives whether that is one of ours, and what is noted of one that is recorded.
pub(crate) fn begin(conn: &Conn, fields: &Fields, record: &mut Record) -> (bool, Option<Box<Traced>>) {
    let caller = caller(fields);
    record.trace_id = caller.map(|caller| caller.trace_id);
    record.span_id = caller.map(|caller| caller.span_id);
    let Some(tracer) = conn.worker.shared.tracer.as_ref() else { return (false, None) };
    let rng = &mut *conn.worker.rng.borrow_mut();
    let trace = caller.unwrap_or_else(|| TraceContext::begin(rng));
    record.trace_id = Some(trace.trace_id);
    if !tracer.sampler().samples(&trace.trace_id, caller.as_ref()) {
        return (caller.is_none(), None);
    }
    // Without a parent the rest is nobody's (section 4.3).
    let state = caller.map(|_| trace_state(fields.known_all(KnownName::TraceState))).unwrap_or_default();
    let parent = caller.map(|caller| caller.span_id);
    let traced = Traced::begin(&trace, parent, state, conn.https, rng);
    record.span_id = Some(traced.context.span_id);
    (caller.is_none(), Some(Box::new(traced)))
}

/// Tells the upstream of the next attempt who its parent is. Of a request that we do not record that stays who it was; a
/// trace begins all the same, so that the next hop does not decide again.
///
/// # Errors
/// The head has no room.
pub(crate) fn propagate(
    conn: &Conn,
    traced: Option<&Traced>,
    record: &Record,
    fields: &mut Fields,
) -> Result<(), FieldError> {
    if conn.worker.shared.tracer.is_none() {
        return Ok(());
    }
    let own = match (traced, record.trace_id) {
        (Some(traced), _) => traced.next(),
        (None, Some(trace_id)) if caller(fields).is_none() => {
            let span_id = SpanId::random(&mut *conn.worker.rng.borrow_mut());
            TraceContext { trace_id, span_id, sampled: false }
        }
        (None, _) => return Ok(()),
    };
    if traced.is_none_or(|traced| traced.state.is_empty()) {
        fields.remove_known(KnownName::TraceState);
    }
    fields.set_known(KnownName::TraceParent, own.traceparent())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_one_traceparent_or_none() {
        let own = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut fields = Fields::new();
        assert_eq!(caller(&fields), None);
        fields.push("Traceparent", own).unwrap();
        assert_eq!(caller(&fields).unwrap().to_string(), own);
        fields.push("traceparent", own).unwrap();
        assert_eq!(caller(&fields), None);
    }
}
