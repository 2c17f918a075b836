use meshwork_base::SeededRng;

use super::*;
use crate::request::OwnedRequest;

const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

fn rule(source: HashSource, terminal: bool) -> HashRule {
    HashRule { source, terminal }
}

fn header(name: &str) -> HashSource {
    HashSource::Header(name.into())
}

fn key(rules: &[HashRule], request: &OwnedRequest) -> HashKey {
    let hashing = Hashing { rules: rules.into(), balance_factor: None };
    hashing.key(request, Some(SOURCE), &mut SeededRng::new(1))
}

fn get() -> OwnedRequest {
    OwnedRequest::get("h", "/?user=ann%20lee&x=1")
}

#[test]
fn each_source_tells_requests_apart() {
    let ann = get().with_header("x-user", "ann").with_header("cookie", "a=b; sid=\"7\"; sid=8");
    let of = |source: HashSource| key(&[rule(source, false)], &ann).hash;
    assert_eq!(of(header("x-user")), Some(xxh64(b"ann", 0)));
    assert_eq!(of(header("x-none")), None);
    assert_eq!(of(HashSource::QueryParameter("user".into())), Some(xxh64(b"ann lee", 0)));
    let cookie = |name: &str| HashSource::Cookie { name: name.into(), ttl: None, path: "".into() };
    assert_eq!(of(cookie("sid")), Some(xxh64(b"7", 0)), "the first counts, quotes do not");
    assert_eq!(of(cookie("id")), None, "a part of a name is another name");
    assert_eq!(of(HashSource::SourceAddress), Some(xxh64(&[192, 0, 2, 7], 0)));
    let mapped = "::ffff:192.0.2.7".parse().unwrap();
    assert_eq!(of_address(mapped), of_address(SOURCE), "one caller, however its address is written");
}

#[test]
fn all_rules_count_up_to_a_terminal_one_that_says_something() {
    let (one, two) = (rule(header("x-a"), false), rule(header("x-b"), false));
    let last = |name: &str| rule(header(name), true);
    let request = get().with_header("x-a", "1").with_header("x-b", "2");
    let only_a = key(std::slice::from_ref(&one), &request).hash;
    let both = key(&[one.clone(), two.clone()], &request).hash;
    assert_ne!(both, only_a);
    assert_ne!(both, key(&[two.clone(), one], &request).hash, "order counts");
    assert_eq!(key(&[last("x-a"), two.clone()], &request).hash, only_a, "terminal");
    assert_eq!(key(&[last("x-none"), two.clone()], &request).hash, key(&[two], &request).hash);
    assert_eq!(key(&[last("x-none")], &request), HashKey::default(), "nothing is said");
}

#[test]
fn values_of_one_header_count_in_their_order() {
    let rules = [rule(header("x-a"), false)];
    let of = |a: &str, b: &str| key(&rules, &get().with_header("x-a", a).with_header("x-a", b)).hash;
    assert_eq!(of("1", "2"), of("1", "2"));
    assert_ne!(of("1", "2"), of("2", "1"));
}

#[test]
fn a_cookie_is_made_where_there_is_none_and_leads_to_the_same() {
    let cookie = |ttl| HashSource::Cookie { name: "sid".into(), ttl, path: "/cart".into() };
    let rules = [rule(cookie(Some(Duration::from_secs(60))), false)];
    let made = key(&rules, &get());
    let new = made.cookie.unwrap();
    assert_eq!(new.to_field(false), format!("sid={}; Max-Age=60; Path=/cart; HttpOnly", new.value));
    assert!(new.to_field(true).ends_with("; HttpOnly; Secure"));
    let again = key(&rules, &get().with_header("cookie", &format!("sid={}", new.value)));
    assert_eq!(again, HashKey { hash: made.hash, cookie: None });
    assert_eq!(key(&[rule(cookie(None), false)], &get()), HashKey::default(), "none is made without a time");
    let session = key(&[rule(cookie(Some(Duration::ZERO)), false)], &get()).cookie.unwrap();
    assert_eq!(session.to_field(false), format!("sid={}; Path=/cart; HttpOnly", session.value));
}

#[test]
fn of_two_cookies_that_could_be_made_the_first_is_and_the_next_request_leads_to_the_same() {
    let cookie = |name: &str| {
        let ttl = Some(Duration::from_secs(60));
        rule(HashSource::Cookie { name: name.into(), ttl, path: "".into() }, false)
    };
    let rules = [cookie("one"), cookie("two")];
    let made = key(&rules, &get());
    let new = made.cookie.unwrap();
    let one = format!("one={}", new.value);
    assert_eq!((&*new.name, made.hash), ("one", Some(xxh64(new.value.as_bytes(), 0))));
    let again = key(&rules, &get().with_header("cookie", &one));
    assert_eq!(again, HashKey { hash: made.hash, cookie: None });
    let both = key(&rules, &get().with_header("cookie", &one).with_header("cookie", "two=2"));
    assert_ne!(both.hash, made.hash, "one that is there counts");
}

#[test]
fn of_a_connection_only_the_source_is_known() {
    let of = |rules: &[HashRule]| Hashing { rules: rules.into(), balance_factor: None }.of_connection(SOURCE);
    assert_eq!(of(&[rule(header("x-a"), false)]), None);
    assert_eq!(
        of(&[rule(header("x-a"), true), rule(HashSource::SourceAddress, false)]),
        Some(of_address(SOURCE))
    );
}
