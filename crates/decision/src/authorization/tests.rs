use meshwork_base::SpiffeId;

use super::*;
use crate::reasons::{Explanation, NoReasons};
use crate::request::OwnedRequest;

fn policy(action: Action, name: &str, rules: Vec<AuthorizationRule>) -> Arc<AuthorizationPolicy> {
    let origin = Arc::new(Origin { qualified: name.into(), ..Origin::default() });
    Arc::new(AuthorizationPolicy { origin, action, rules: rules.into(), understood: true })
}

fn everything() -> AuthorizationRule {
    AuthorizationRule { from: Box::default(), to: Box::default() }
}

fn from(spiffe_ids: Vec<TextRule>, namespaces: &[&str]) -> AuthorizationRule {
    let peers =
        Peers { spiffe_ids: spiffe_ids.into(), namespaces: namespaces.iter().map(|n| (*n).into()).collect() };
    AuthorizationRule { from: Box::new([peers]), to: Box::default() }
}

fn to(hosts: &[&str], methods: &[&str], paths: Vec<TextRule>) -> AuthorizationRule {
    let operation = Operation {
        hosts: hosts.iter().map(|h| HostRule(HostPattern::parse(h).unwrap())).collect(),
        methods: methods.iter().map(|m| (*m).into()).collect(),
        paths: paths.into(),
    };
    AuthorizationRule { from: Box::default(), to: Box::new([operation]) }
}

fn web() -> OwnedRequest {
    let peer = SpiffeId::parse("spiffe://mesh/ns/shop/sa/web").unwrap();
    OwnedRequest::get("Reviews.shop:80", "/reviews/1").from_peer(peer)
}

fn allows(policies: Vec<Arc<AuthorizationPolicy>>, request: &OwnedRequest) -> bool {
    let authorization = Authorization::new(policies.into_iter());
    let plain = authorization.check(request, &mut NoReasons).is_ok();
    assert_eq!(authorization.check(request, &mut Explanation::default()).is_ok(), plain);
    plain
}

#[test]
fn a_deny_wins_and_an_allow_must_match_where_one_is_attached() {
    use Action::{Allow, Audit, Deny};
    let mine = || from(vec![], &["shop"]);
    let other = || from(vec![], &["other"]);
    assert!(allows(vec![], &web()));
    assert!(allows(vec![policy(Audit, "a/x", vec![everything()])], &web()));
    assert!(allows(vec![policy(Allow, "a/x", vec![mine()])], &web()));
    assert!(!allows(vec![policy(Allow, "a/x", vec![other()])], &web()));
    assert!(allows(vec![policy(Allow, "a/x", vec![other()]), policy(Allow, "a/y", vec![mine()])], &web()));
    assert!(!allows(vec![policy(Deny, "a/x", vec![mine()]), policy(Allow, "a/y", vec![mine()])], &web()));
    assert!(allows(vec![policy(Deny, "a/x", vec![other()])], &web()));
    assert!(!allows(vec![policy(Allow, "a/x", vec![])], &web()), "an Allow without rules grants nothing");
    assert!(allows(vec![policy(Deny, "a/x", vec![])], &web()), "a Deny without rules refuses nothing");
}

#[test]
fn the_refusal_names_the_policy() {
    let deny = policy(Action::Deny, "a/deny", vec![everything()]);
    let allow = policy(Action::Allow, "a/allow", vec![]);
    let name = |policies: Vec<_>| {
        let authorization = Authorization::new(policies.into_iter());
        authorization.check(&web(), &mut NoReasons).unwrap_err().policy.origin.qualified.to_string()
    };
    assert_eq!(name(vec![allow.clone(), deny]), "a/deny");
    assert_eq!(name(vec![allow]), "a/allow");
}

#[test]
fn peers_are_matched_by_identity_and_namespace_together() {
    let exact = |text: &str| TextRule::Exact(text.into());
    let id = "spiffe://mesh/ns/shop/sa/web";
    for (rule, want) in [
        (from(vec![exact(id)], &[]), true),
        (from(vec![exact(id)], &["shop"]), true),
        (from(vec![exact(id)], &["other"]), false),
        (from(vec![exact("spiffe://mesh/ns/shop/sa/we")], &[]), false),
        (from(vec![TextRule::Prefix("spiffe://mesh/ns/shop/".into())], &[]), true),
        (from(vec![TextRule::Prefix("spiffe://other/".into())], &["shop"]), false),
        (from(vec![], &[]), true),
    ] {
        let what = format!("{rule:?}");
        assert_eq!(allows(vec![policy(Action::Allow, "a/x", vec![rule])], &web()), want, "{what}");
    }
    let nobody = OwnedRequest { peer: None, ..web() };
    let shop = || from(vec![], &["shop"]);
    assert!(!allows(vec![policy(Action::Allow, "a/x", vec![shop()])], &nobody));
    let any = from(vec![TextRule::Prefix("".into())], &[]);
    assert!(!allows(vec![policy(Action::Allow, "a/x", vec![any])], &nobody), "`*` means any proven identity");
}

#[test]
fn operations_are_matched_by_host_method_and_path_together() {
    let exact = |text: &str| vec![TextRule::Exact(text.into())];
    let below = |text: &str| vec![TextRule::Prefix(text.into())];
    for (rule, want) in [
        (to(&["reviews.shop"], &["GET"], below("/reviews/")), true),
        (to(&["*.shop"], &[], vec![]), true),
        (to(&["shop"], &[], vec![]), false),
        (to(&[], &["POST", "GET"], vec![]), true),
        (to(&[], &["get"], vec![]), false),
        (to(&[], &[], exact("/reviews")), false),
        (to(&[], &[], exact("/reviews/1")), true),
        (to(&["reviews.shop"], &["POST"], below("/")), false),
        (to(&["other"], &["GET"], below("/")), false),
        (to(&["reviews.shop"], &["GET"], below("/other")), false),
    ] {
        let what = format!("{rule:?}");
        assert_eq!(allows(vec![policy(Action::Allow, "a/x", vec![rule])], &web()), want, "{what}");
    }
}

#[test]
fn audits_are_told_apart_and_decide_nothing() {
    let authorization = Authorization::new(
        [
            policy(Action::Audit, "a/yes", vec![from(vec![], &["shop"])]),
            policy(Action::Audit, "a/no", vec![from(vec![], &["other"])]),
        ]
        .into_iter(),
    );
    let request = web();
    let names: Vec<_> = authorization.audits(&request).map(|p| p.origin.qualified.to_string()).collect();
    assert_eq!(names, ["a/yes"]);
}
