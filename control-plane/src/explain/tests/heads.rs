//! What a proxy makes of a head before it decides is foretold too.

use super::*;

async fn verdict(plane: &ControlPlane, question: &Value) -> (Value, Value) {
    let (status, answer) = ask(plane, question).await;
    assert_eq!(status, StatusCode::OK, "{question}: {answer}");
    let step = answer["steps"].as_array().unwrap().iter().rfind(|step| step["phase"] == "head").cloned();
    (answer["verdict"].clone(), step.unwrap_or_default())
}

#[tokio::test]
async fn a_head_that_proxies_refuse_is_refused_with_their_cause_and_words() {
    let (_folder, plane) = serve().await;
    let long = |count: usize| "x".repeat(count);
    let many: Vec<[String; 2]> = (0..100).map(|n| [format!("x-{n}"), "1".to_owned()]).collect();
    for (question, status, words) in [
        (json!({"path": "/api/\u{1}"}), 400, "bad_target: "),
        (json!({"path": "/api/%zz"}), 400, "bad_target: "),
        (json!({"path": "/api/a b"}), 400, "bad_request_line: "),
        (json!({"path": "/api/a\r\nb"}), 400, "bad_request_line: "),
        (json!({"path": "/api/a\nb"}), 400, "bare_lf: "),
        (json!({"path": "*"}), 400, "target_form: "),
        (json!({"path": format!("/api/{}", long(16_384))}), 414, "over HTTP/1.1: request_line_too_long: "),
        (json!({"host": "shop.example:99999"}), 400, "bad_host: "),
        (json!({"host": "shop.example::"}), 400, "bad_host: "),
        (json!({"headers": [["host", "other.example"]]}), 400, "repeated_host: "),
        (json!({"headers": [["Content-Length", "1"], ["content-length", "1"]]}), 400, "repeated_length: "),
        (json!({"headers": [["transfer-encoding", "gzip"]]}), 501, "unknown_coding: "),
        (json!({"headers": [["x", long(40_000)]]}), 431, "over HTTP/1.1: header_line_too_long: "),
        (json!({"headers": many}), 431, "over HTTP/1.1: too_many_headers: "),
    ] {
        for more in [json!({}), json!({"from": "spiffe://mesh.local/ns/shop/sa/cart"})] {
            let mut whole = json!({"host": "shop.example", "path": "/api/x"});
            whole.as_object_mut().unwrap().extend(question.as_object().unwrap().clone());
            whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let (verdict, step) = verdict(&plane, &whole).await;
            assert_eq!(
                (&verdict["outcome"], &verdict["status"]),
                (&json!("failed"), &json!(status)),
                "{words}"
            );
            assert_eq!(verdict["flag"], "DPE", "{words}");
            assert!(step["why"].as_str().unwrap().starts_with(words), "{step}");
        }
    }
    for question in [
        json!({"host": "shop.example", "path": format!("/api/{}", long(16_300))}),
        json!({"host": "shop.example:", "path": "/api/x"}),
    ] {
        let (verdict, step) = verdict(&plane, &question).await;
        assert_eq!((&verdict["outcome"], step), (&json!("forwarded"), Value::Null), "{question}");
    }
}

#[tokio::test]
async fn what_would_be_more_than_one_request_is_no_question() {
    let (_folder, plane) = serve().await;
    for question in [
        json!({"host": "shop.example", "path": "/api HTTP/1.1\r\nx: 1\r\ny: 1"}),
        json!({"host": "shop.example", "path": "/api HTTP/1.1\r\nhost: a\r\n\r\n"}),
        json!({"host": "shop.example\r\nx:1"}),
    ] {
        let (status, problem) = ask(&plane, &question).await;
        assert_eq!(
            (status, &problem["code"]),
            (StatusCode::BAD_REQUEST, &json!("MW4104")),
            "{question}: {problem}"
        );
    }
}

#[tokio::test]
async fn rules_see_the_one_spelling_of_a_path_that_proxies_decide_on() {
    let (_folder, plane) = serve().await;
    let question = json!({"host": "shop.example", "path": "/old/../%61pi/./x?a=/../b"});
    let (_, answer) = ask(&plane, &question).await;
    assert_eq!(answer["route"]["rule"], 0, "{answer:#}");
    assert_eq!(
        (&answer["forwarded"]["path"], &answer["forwarded"]["query"]),
        (&json!("/v1/x"), &json!("a=/../b"))
    );
    let (_, step) = verdict(&plane, &question).await;
    assert!(step["why"].as_str().unwrap().contains(" /api/x,"), "{step}");
    let mesh = json!({"host": "web", "path": "/x/../in", "from": "spiffe://mesh.local/ns/shop/sa/cart"});
    assert_eq!(verdict(&plane, &mesh).await.0["outcome"], "forwarded");
}

#[tokio::test]
async fn who_is_of_another_trust_domain_gets_no_handshake() {
    let (_folder, plane) = serve().await;
    let mut held = Held { world: Arc::default(), builder: SnapshotBuilder::new() };
    held.follow(plane.hub().world().unwrap());
    held.builder.apply([Change::upsert("mesh.local", "1", &v1::Bundle::default())]);
    let snapshot = held.builder.build();
    for (from, outcome) in [
        ("spiffe://mesh.local/ns/shop/sa/cart", "forwarded"),
        ("shop/cart", "forwarded"),
        ("spiffe://other.mesh/ns/shop/sa/cart", "handshakeRefused"),
    ] {
        let ask: Ask = serde_json::from_value(json!({"host": "web", "path": "/in", "from": from})).unwrap();
        let answer = run::explain(&held.builder, &snapshot, &ask, |_| None).unwrap();
        let answer = serde_json::to_value(&answer).unwrap();
        assert_eq!(answer["verdict"]["outcome"], outcome, "{answer:#}");
        if outcome != "forwarded" {
            assert!(
                step(&answer, "tls", "refused")[0].contains("only trust domain mesh.local"),
                "{answer:#}"
            );
        }
    }
}
