use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, Method, Uri};
use meshwork_api::registry::INCARNATION;
use meshwork_api::{Client, ProblemDetails};
use meshwork_base::SeededRng;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::*;

const INSTANCE: &str = r#"{"id": "web-0", "address": "127.0.0.1", "ports": {}, "weight": 1, "tags": [], "metadata": {},
    "health": "maintenance", "node": "here"}"#;

const ANOTHER: &str = r#"{"title": "another copy", "detail": "it runs elsewhere already", "code": "MW5026"}"#;

/// What a registry was told, and whether it still knows the instance.
#[derive(Default)]
struct Told {
    calls: Vec<String>,
    forgets: bool,
    /// Another copy has the name.
    is_taken: bool,
    /// Others change the catalog again and again.
    is_contended: bool,
    /// It cannot answer.
    is_away: bool,
    /// It refuses parameters and keys of which it has never heard.
    is_earlier: bool,
    /// What is heard of the name in the end.
    taken: Option<Option<String>>,
}

/// Keeps an entry in a registry that takes everything; what is given back says whether it is usable.
fn kept() -> (Arc<Mutex<Told>>, watch::Sender<bool>) {
    kept_as(Registration::default())
}

fn kept_as(registration: Registration) -> (Arc<Mutex<Told>>, watch::Sender<bool>) {
    let told = Arc::new(Mutex::new(Told::default()));
    let hears = Arc::clone(&told);
    let answer = move |method: Method, uri: Uri, headers: HeaderMap, body: String| {
        let path = uri.to_string();
        let path = path.strip_prefix("/v1/meshwork/instances/shop/web/web-0").unwrap();
        let mut told = hears.lock();
        let copy = headers.get(INCARNATION).map(|copy| format!(" as {}", copy.to_str().unwrap()));
        told.calls.push(format!("{method} {path}{}", copy.unwrap_or_default()));
        if told.is_earlier && (uri.query().is_some() || body.contains("incarnation")) {
            return std::future::ready((StatusCode::BAD_REQUEST, "is not known here"));
        }
        let forgotten = path == "/renew" && std::mem::take(&mut told.forgets);
        std::future::ready(match *told {
            Told { is_away: true, .. } => (StatusCode::SERVICE_UNAVAILABLE, ""),
            Told { is_contended: true, .. } => (StatusCode::CONFLICT, r#"{"code": "MW5023"}"#),
            _ if forgotten => (StatusCode::NOT_FOUND, ""),
            Told { is_taken: true, .. } => (StatusCode::CONFLICT, ANOTHER),
            _ => (StatusCode::OK, INSTANCE),
        })
    };
    let registry = RegistryClient(Client::in_memory("the registry", Router::new().fallback(answer)));
    let registrar = Registrar {
        registry,
        namespace: "shop".to_owned(),
        service: "web".to_owned(),
        instance: "web-0".to_owned(),
        registration,
    };
    let (usable, is_usable) = watch::channel(false);
    let becomes = move || {
        let mut is_usable = is_usable.clone();
        async move { drop(is_usable.wait_for(|usable| *usable).await.unwrap()) }
    };
    let hears = Arc::clone(&told);
    let taken = move |taken: Option<&str>| hears.lock().taken = Some(taken.map(str::to_owned));
    tokio::spawn(registrar.keep(becomes, taken, SeededRng::new(1)));
    (told, usable)
}

/// What the registry says from now on.
fn said(told: &Mutex<Told>, is_away: bool, is_taken: bool) {
    let mut told = told.lock();
    (told.is_away, told.is_taken) = (is_away, is_taken);
}

/// What is told in some time.
async fn within(told: &Mutex<Told>, time: Duration) -> Vec<String> {
    tokio::time::sleep(time).await;
    std::mem::take(&mut told.lock().calls)
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_not_usable_yet_is_kept_by_the_registry_and_not_taken_into_use() {
    let (told, usable) = kept();
    let first = within(&told, Duration::from_secs(61)).await;
    assert_eq!(first[0], "PUT ");
    assert_eq!(first[1..], vec!["PUT /renew"; 12], "for four leases");
    usable.send(true).unwrap();
    assert_eq!(within(&told, Duration::from_secs(1)).await, ["DELETE /maintenance"]);
    assert_eq!(within(&told, RENEW).await, ["PUT /renew"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_registry_forgot_is_registered_again_and_used_again_once_it_is_usable() {
    let (told, usable) = kept();
    usable.send(true).unwrap();
    assert_eq!(within(&told, Duration::from_secs(1)).await, ["PUT ", "DELETE /maintenance"]);
    told.lock().forgets = true;
    assert_eq!(within(&told, RENEW).await, ["PUT /renew", "PUT ", "DELETE /maintenance"], "it still is");
    // Gone with the entry, its workload is not told to it any more.
    usable.send(false).unwrap();
    told.lock().forgets = true;
    assert_eq!(within(&told, 2 * RENEW).await, ["PUT /renew", "PUT ", "PUT /renew"], "kept, and not in use");
    usable.send(true).unwrap();
    assert_eq!(within(&told, Duration::from_secs(1)).await, ["DELETE /maintenance"]);
}

#[tokio::test(start_paused = true)]
async fn whose_name_another_copy_has_says_which_it_is_and_waits_for_its_place() {
    let registration = Registration { incarnation: Some("a1".to_owned()), ..Registration::default() };
    let (told, usable) = kept_as(registration);
    usable.send(true).unwrap();
    assert_eq!(within(&told, Duration::from_secs(1)).await, ["PUT  as a1", "DELETE /maintenance as a1"]);
    told.lock().is_taken = true;
    let calls = within(&told, 6 * RENEW).await;
    assert_eq!(
        calls[..2],
        ["PUT /renew as a1", "PUT  as a1"],
        "only a registration tells whether it is free again"
    );
    assert!(calls[2..].iter().all(|call| call == "PUT  as a1") && calls.len() > 5, "{calls:?}");
    told.lock().is_taken = false;
    assert_eq!(within(&told, RENEW).await[..2], ["PUT  as a1", "DELETE /maintenance as a1"]);
}

#[tokio::test(start_paused = true)]
async fn whose_name_another_copy_has_hears_it_until_the_registry_says_otherwise() {
    let (told, _usable) = kept();
    let hears = async || {
        within(&told, 2 * RENEW).await;
        told.lock().taken.clone()
    };
    told.lock().is_away = true;
    assert_eq!(told.lock().taken, None, "nothing is known before the first attempt has ended");
    assert_eq!(hears().await, Some(None), "a registry that is away is no reason to stand back");
    said(&told, false, true);
    let taken = Some(Some("it runs elsewhere already (MW5026)".to_owned()));
    assert_eq!(hears().await, taken);
    told.lock().is_away = true;
    assert_eq!(hears().await, taken, "silence frees no name");
    said(&told, false, false);
    assert_eq!(hears().await, Some(None));
    told.lock().is_taken = true;
    assert_eq!(hears().await, taken);
}

#[test]
fn another_kind_of_failure_is_told_though_one_was_told_before() {
    let silent = || ClientError::Unreachable { server: "r".to_owned(), cause: "gone".to_owned() };
    let refused = |code: &str| ClientError::Refused {
        server: "r".to_owned(),
        status: StatusCode::CONFLICT,
        problem: Box::new(ProblemDetails { code: Some(code.to_owned()), ..ProblemDetails::default() }),
    };
    let mut told = News::default();
    let heard = [silent(), silent(), refused("MW5026"), refused("MW5026"), refused("MW5023"), silent()];
    assert_eq!(heard.map(|error| told.is_news(&error)), [true, false, true, false, true, true]);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_a_version_behind_understands_what_it_is_told() {
    let registration = Registration { incarnation: Some("a1".to_owned()), ..Registration::default() };
    let (told, usable) = kept_as(registration);
    told.lock().is_earlier = true;
    usable.send(true).unwrap();
    assert_eq!(within(&told, Duration::from_secs(1)).await, ["PUT  as a1", "DELETE /maintenance as a1"]);
    assert_eq!(within(&told, RENEW).await, ["PUT /renew as a1"]);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_contended_has_not_forgotten_the_instance() {
    let (told, usable) = kept();
    usable.send(true).unwrap();
    assert_eq!(within(&told, Duration::from_secs(1)).await, ["PUT ", "DELETE /maintenance"]);
    // Asked anew it would say no, and would be registered out of use.
    usable.send(false).unwrap();
    told.lock().is_contended = true;
    let calls = within(&told, 2 * RENEW).await;
    assert!(!calls.is_empty() && calls.iter().all(|call| call == "PUT /renew"), "{calls:?}");
}
