//! The inventory as its clients see it.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;

use std::time::Duration;

use commerce::inventory::proto::health::HealthCheckRequest;
use commerce::inventory::proto::health::health_check_response::ServingStatus;
use commerce::inventory::proto::health::health_client::HealthClient;
use commerce::inventory::proto::inventory as pb;
use commerce::inventory::proto::inventory::inventory_client::InventoryClient;
use common::{INVENTORY, PATIENCE, Service};
use tonic::Code;
use tonic::transport::Channel;

async fn client(service: &Service) -> InventoryClient<Channel> {
    InventoryClient::connect(service.url()).await.unwrap()
}

fn reserve(key: &str, lines: &[(&str, u32)]) -> pb::ReserveRequest {
    let line = |&(sku, quantity): &(&str, u32)| pb::ReservationLine { sku: sku.into(), quantity };
    pb::ReserveRequest { idempotency_key: key.into(), lines: lines.iter().map(line).collect() }
}

async fn set(client: &mut InventoryClient<Channel>, levels: &[(&str, u32)]) -> pb::SetStockResponse {
    let line = |&(sku, on_hand): &(&str, u32)| pb::set_stock_request::Line { sku: sku.into(), on_hand };
    let request = pb::SetStockRequest { lines: levels.iter().map(line).collect() };
    client.set_stock(request).await.unwrap().into_inner()
}

async fn available(client: &mut InventoryClient<Channel>, sku: &str) -> u32 {
    client.get_stock(pb::GetStockRequest { sku: sku.into() }).await.unwrap().into_inner().available
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_callers_never_oversell_and_a_repeated_key_takes_once() {
    let service = Service::start(INVENTORY, &[]);
    let mut client = client(&service).await;
    set(&mut client, &[("ROPE1", 20), ("ROPE2", 1000)]).await;
    // Fifty reservations, each sent twice at once, for twenty pieces.
    let calls = (0..100).map(|n| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let key = format!("order-{}", n % 50);
            let answer = client.reserve(reserve(&key, &[("ROPE1", 1), ("ROPE2", 3)])).await;
            (key, answer.map(tonic::Response::into_inner))
        })
    });
    let mut held = std::collections::BTreeMap::<String, (u32, u32)>::new();
    for call in calls.collect::<Vec<_>>() {
        match call.await.unwrap() {
            (key, Ok(reservation)) => {
                assert_eq!(reservation.state(), pb::reservation::State::Held);
                let counts = held.entry(key).or_default();
                if reservation.replayed { counts.1 += 1 } else { counts.0 += 1 }
            }
            (_, Err(status)) => assert_eq!(status.code(), Code::FailedPrecondition, "{status}"),
        }
    }
    assert_eq!(held.len(), 20);
    assert!(held.values().all(|&(first, replayed)| first == 1 && replayed <= 1), "{held:?}");
    assert_eq!((available(&mut client, "ROPE1").await, available(&mut client, "ROPE2").await), (0, 940));
}

#[tokio::test]
async fn a_reservation_is_whole_or_not_at_all_and_goes_back_once() {
    let service = Service::start(INVENTORY, &[]);
    let mut client = client(&service).await;
    set(&mut client, &[("A1", 5), ("B1", 1)]).await;
    let short = client.reserve(reserve("k1", &[("A1", 2), ("B1", 2)])).await.unwrap_err();
    assert_eq!(short.code(), Code::FailedPrecondition);
    assert!(short.message().contains("B1") && short.message().contains('1'), "{short}");
    assert_eq!(available(&mut client, "A1").await, 5);
    // A key whose call failed was not used up.
    let held = client.reserve(reserve("k1", &[("B1", 1), ("A1", 2)])).await.unwrap().into_inner();
    assert_eq!(held.lines.iter().map(|l| l.sku.as_str()).collect::<Vec<_>>(), ["A1", "B1"]);
    let other = client.reserve(reserve("k1", &[("A1", 3)])).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
    let below =
        pb::SetStockRequest { lines: vec![pb::set_stock_request::Line { sku: "A1".into(), on_hand: 1 }] };
    assert_eq!(client.set_stock(below).await.unwrap_err().code(), Code::FailedPrecondition);
    let release = || pb::ReleaseRequest { idempotency_key: "k1".into() };
    assert!(!client.release(release()).await.unwrap().into_inner().replayed);
    assert!(client.release(release()).await.unwrap().into_inner().replayed);
    assert_eq!(available(&mut client, "A1").await, 5);
    let again = client.reserve(reserve("k1", &[("A1", 2), ("B1", 1)])).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
    let nobody = client.release(pb::ReleaseRequest { idempotency_key: "none".into() }).await.unwrap_err();
    assert_eq!(nobody.code(), Code::NotFound);
}

#[tokio::test]
async fn refuses_what_makes_no_sense() {
    let service = Service::start(INVENTORY, &[]);
    let mut client = client(&service).await;
    let requests = [
        reserve("", &[("TE1001", 1)]),
        reserve("k", &[]),
        reserve("k", &[("TE1001", 0)]),
        reserve("k", &[("TE1001", 1), ("TE1001", 1)]),
        reserve("k", &[("../x", 1)]),
    ];
    for request in requests {
        assert_eq!(
            client.reserve(request.clone()).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{request:?}"
        );
    }
    assert_eq!(client.reserve(reserve("k", &[("NONE1", 1)])).await.unwrap_err().code(), Code::NotFound);
    let none = client.get_stock(pb::GetStockRequest { sku: "NONE1".into() }).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound);
    let skus = ["TE1002", "NONE1", "TE1001", "TE1002"].map(String::from).to_vec();
    let batch = client.batch_get_stock(pb::BatchGetStockRequest { skus }).await.unwrap().into_inner();
    assert_eq!(batch.levels.iter().map(|l| l.sku.as_str()).collect::<Vec<_>>(), ["TE1002", "TE1001"]);
    assert_eq!(batch.unknown_skus, ["NONE1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_sees_the_snapshot_and_every_change_in_order() {
    let mut service = Service::start(INVENTORY, &[]);
    let mut client = client(&service).await;
    set(&mut client, &[("A1", 0), ("B1", 7)]).await;
    let request = pb::WatchStockRequest { skus: vec!["A1".into()] };
    let mut watch = client.watch_stock(request).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert!(first.snapshot && first.levels.len() == 1 && first.levels[0].on_hand == 0, "{first:?}");
    for on_hand in 1..=50 {
        set(&mut client, &[("A1", on_hand), ("B1", on_hand)]).await;
    }
    assert_eq!(set(&mut client, &[("A1", 50)]).await.unchanged, 1);
    let mut last = (0, first.levels[0].revision);
    while last.0 < 50 {
        let next =
            tokio::time::timeout(PATIENCE, watch.message()).await.expect("no change").unwrap().unwrap();
        let level = &next.levels[0];
        assert_eq!((next.levels.len(), level.sku.as_str()), (1, "A1"));
        // A snapshot may leap over changes that this reader was too slow for; nothing goes back.
        assert!(next.snapshot || level.on_hand == last.0 + 1, "{last:?} then {next:?}");
        assert!(level.on_hand > last.0 && level.revision > last.1, "{last:?} then {next:?}");
        last = (level.on_hand, level.revision);
    }
    service.terminate();
    let end = tokio::time::timeout(PATIENCE, watch.message()).await.expect("the stream outlives its server");
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
    drop((watch, client));
    assert!(service.ended().await.success());
}

#[tokio::test]
async fn health_is_as_the_protocol_says() {
    let mut service = Service::start(INVENTORY, &[]);
    let mut client = HealthClient::connect(service.url()).await.unwrap();
    let ask = |service: &str| HealthCheckRequest { service: service.into() };
    for name in ["", "commerce.inventory.v1.Inventory"] {
        assert_eq!(client.check(ask(name)).await.unwrap().into_inner().status(), ServingStatus::Serving);
    }
    assert_eq!(client.check(ask("no.such.Service")).await.unwrap_err().code(), Code::NotFound);
    let mut unknown = client.watch(ask("no.such.Service")).await.unwrap().into_inner();
    assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    let mut watch = client.watch(ask("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    service.terminate();
    let last = tokio::time::timeout(PATIENCE, watch.message()).await.expect("no word of the end");
    assert_eq!(last.unwrap().unwrap().status(), ServingStatus::NotServing);
    drop((unknown, watch, client));
    assert!(service.ended().await.success());
}

#[tokio::test]
async fn two_instances_seeded_alike_agree_and_stock_outlives_a_kill() {
    let data = tempfile::tempdir().unwrap();
    let mut one = Service::start_in(INVENTORY, data.path(), &[]);
    let two = Service::start(INVENTORY, &[]);
    let (mut first, mut second) = (client(&one).await, client(&two).await);
    for sku in ["TE1001", "CL1018", "HH1020"] {
        assert_eq!(available(&mut first, sku).await, available(&mut second, sku).await);
    }
    let before = available(&mut first, "TE1001").await;
    first.reserve(reserve("k", &[("TE1001", 2)])).await.unwrap();
    one.kill().await;
    let one = Service::start_in(INVENTORY, data.path(), &[]);
    let mut first = client(&one).await;
    assert_eq!(
        available(&mut first, "TE1001").await,
        before - 2,
        "a restart neither forgets nor seeds again"
    );
    let connect = Channel::from_shared(one.url()).unwrap().timeout(Duration::from_secs(5));
    let mut again = InventoryClient::new(connect.connect().await.unwrap());
    assert!(again.reserve(reserve("k", &[("TE1001", 2)])).await.unwrap().into_inner().replayed);
}
