//! Certificates over the API: Heroku's SNI endpoints.

use super::access::Caller;
use super::answer::{Answer, Body, Listed, Made, Shown};
use super::list::{Key, Range};
use super::render::app_ref;
use crate::certificates::{covers, read};
use crate::core::{Controller, not_found};
use crate::db::CertificateRecord;
use axum::Extension;
use axum::extract::{Path, State};
use flex_api::{ApiError, PutSniEndpoint, SniEndpoint, SslCert};
use flex_model::App;
use std::sync::Arc;

type TheApp = Extension<Arc<App>>;

async fn render(c: &Controller, app: &App, record: &CertificateRecord) -> Result<SniEndpoint, ApiError> {
    // It was read when it was added.
    let facts = read(&record.chain).ok_or_else(|| not_found("That certificate cannot be read any more."))?;
    let hosts = c.hosts_of(app).await?;
    Ok(SniEndpoint {
        id: record.id,
        name: record.name.clone(),
        app: app_ref(app),
        certificate_chain: record.chain.clone(),
        domains: hosts.into_iter().filter(|d| facts.names.iter().any(|n| covers(n, d))).collect(),
        ssl_cert: SslCert {
            cert_domains: facts.names,
            subject: facts.subject,
            issuer: facts.issuer,
            starts_at: facts.starts_at.into(),
            expires_at: facts.expires_at.into(),
            self_signed: facts.self_signed,
            ca_signed: !facts.self_signed,
            acm: record.auto.is_some(),
        },
        cname: None,
        created_at: record.created_at.into(),
        updated_at: record.updated_at.into(),
    })
}

pub async fn list(State(c): State<Controller>, Extension(app): TheApp, range: Range) -> Answer<Listed<SniEndpoint>> {
    let mut all = Vec::new();
    for record in c.certificates_of(app.id).await? {
        all.push(render(&c, &app, &record).await?);
    }
    let by =
        [("created_at", (|e| Key::Time(e.created_at.0)) as fn(&SniEndpoint) -> Key), ("name", |e| Key::Text(e.name.clone()))];
    range.page(all, |e| e.id.to_string(), &by)?.show(|e| e)
}

pub async fn create(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<PutSniEndpoint>,
) -> Answer<Made<SniEndpoint>> {
    let record = c.put_certificate(&caller.actor(), &app, None, body.certificate_chain, body.private_key).await?;
    Ok(Made(render(&c, &app, &record).await?))
}

pub async fn info(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, endpoint)): Path<(String, String)>,
) -> Answer<Shown<SniEndpoint>> {
    let record = c.certificate(app.id, &endpoint).await?;
    Ok(Shown(render(&c, &app, &record).await?))
}

pub async fn update(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, endpoint)): Path<(String, String)>,
    Body(body): Body<PutSniEndpoint>,
) -> Answer<Shown<SniEndpoint>> {
    let before = c.certificate(app.id, &endpoint).await?;
    let record = c.put_certificate(&caller.actor(), &app, Some(&before), body.certificate_chain, body.private_key).await?;
    Ok(Shown(render(&c, &app, &record).await?))
}

pub async fn remove(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, endpoint)): Path<(String, String)>,
) -> Answer<Shown<SniEndpoint>> {
    let record = c.certificate(app.id, &endpoint).await?;
    let shown = render(&c, &app, &record).await?;
    c.remove_certificate(&caller.actor(), &app, &record).await?;
    Ok(Shown(shown))
}

pub async fn enable_acm(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
) -> Answer<Shown<flex_api::App>> {
    let app = c.set_acm(&caller.actor(), app.id, true).await?;
    Ok(Shown(c.render_app(&app).await?))
}

pub async fn disable_acm(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
) -> Answer<Shown<flex_api::App>> {
    let app = c.set_acm(&caller.actor(), app.id, false).await?;
    Ok(Shown(c.render_app(&app).await?))
}

pub async fn refresh_acm(State(c): State<Controller>, Extension(app): TheApp) -> Answer<Shown<flex_api::App>> {
    c.refresh_acm(&app).await?;
    Ok(Shown(c.render_app(&app).await?))
}
