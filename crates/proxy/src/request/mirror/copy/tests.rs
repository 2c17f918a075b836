use std::task::Waker;

use super::*;

const IDLE: Duration = Duration::from_secs(60);

/// A copy without a body that waits for its answer.
fn sent() -> Carried {
    Carried { sending: Sending::new(None), ..Carried::default() }
}

fn patience() -> Patience {
    Patience { idle: IDLE, sleep: Box::pin(sleep(IDLE)), last: false }
}

/// When it is over after this.
fn end_after(patience: &mut Patience, moved: bool, carried: &Carried) -> Instant {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(patience.poll(&mut cx, moved, carried).is_pending());
    patience.sleep.deadline()
}

#[tokio::test]
async fn what_moves_is_waited_for_and_what_stands_is_not() {
    let (mut patience, carried) = (patience(), sent());
    let first = end_after(&mut patience, false, &carried);
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(end_after(&mut patience, false, &carried), first, "nothing has moved");
    let second = end_after(&mut patience, true, &carried);
    assert!(second > first, "its time begins anew");
}

#[tokio::test]
async fn the_rest_of_a_response_has_its_time_whatever_moves() {
    let mut patience = patience();
    let carried = Carried { answered: Some(Tick::ZERO), ..sent() };
    let end = end_after(&mut patience, true, &carried);
    assert!(end <= Instant::now() + READ_FOR, "it is no longer the idle time");
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(end_after(&mut patience, true, &carried), end, "nor does it begin anew");
}
