//! A store that fails under a control plane that runs.

use super::*;

fn refused(error: &ClientError) -> (u16, Option<&str>) {
    (error.status().map_or(0, |status| status.as_u16()), error.code())
}

#[tokio::test]
async fn who_is_revoked_is_so_at_once_though_it_cannot_be_kept_and_nobody_is_told_that_it_is() {
    let mesh = Mesh::new().await;
    let trust = mesh.plane.trust().unwrap();
    let failing = trust.failing();
    assert!(failing.borrow().is_none());
    let before = trust.bundle().sequence();
    let kept = mesh.copy();
    std::fs::remove_dir_all(mesh.path("control-plane")).unwrap();
    let deny = async || mesh.post("/v1/identity/deny", json!({ "serial": "0102" })).await.unwrap_err();
    let error = deny().await;
    assert_eq!(refused(&error), (503, Some("MW5011")), "{error}");
    assert!(
        error.to_string().contains("is in force, but it could not be kept and may end with this process"),
        "{error}"
    );
    assert_eq!(mesh.get("/v1/identity/deny").await[0]["serial"], "0102");
    assert!(trust.bundle().sequence() > before && trust.bundle().denied().count() == 1, "proxies hear of it");
    assert!(failing.borrow().as_ref().is_some_and(|why| why.contains("restart this process")));
    assert_eq!(deny().await.status(), error.status(), "asked for again it still is not kept");
    // To give trust back without keeping it would undo a revocation only until the restart, and look like for good.
    let id = mesh.get("/v1/identity/deny").await[0]["id"].to_string();
    assert_eq!(mesh.delete(&format!("/v1/identity/deny/{id}")).await.unwrap_err().status(), error.status());
    assert_eq!(trust.bundle().denied().count(), 1);
    let token = TokenRequest { namespace: "shop".into(), workload: "web".into(), uses: 1, ttl_seconds: 60 };
    let no_token = IdentityClient(mesh.api()).create_token(&token).await.unwrap_err();
    assert_eq!(no_token.status(), error.status(), "{no_token}");
    let after = Mesh::restored(kept, Arc::clone(&mesh.clock)).await;
    assert_eq!(after.get("/v1/identity/deny").await, json!([]));
    after.post("/v1/identity/deny", json!({ "serial": "0102" })).await.unwrap();
}
