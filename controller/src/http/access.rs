//! Who is asking, and may they: one middleware for every route, driven by the table.

use super::answer::Failure;
use super::limit::Bucket;
use super::table::{Needs, find};
use crate::core::{Actor, Controller, app_not_found, lock};
use crate::db::keys;
use axum::body::Body;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flex_api::{ApiError, ErrorId};
use flex_model::{App, Collaborator, Token, User};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// What someone is to an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// May do everything everywhere.
    Admin,
    Owner,
    Collaborator,
}

/// Who is asking, once the table's demand is met. A handler finds it in the request's extensions.
#[derive(Debug, Clone)]
pub struct Caller {
    pub user: Arc<User>,
    /// The address that they ask from.
    pub from: Option<std::net::IpAddr>,
}

/// The name of the router that asks, where the table demands one. A handler finds it in the request's extensions.
#[derive(Debug, Clone)]
pub struct RouterName(pub String);

impl Caller {
    pub fn actor(&self) -> Actor {
        Actor::user(self.user.id, &self.user.email).at(self.from.map(|a| a.to_string()))
    }
}

impl Controller {
    /// A user's role in an app; none: it is none of their business.
    pub async fn role_in(&self, user: &User, app: &App) -> Result<Option<Role>, ApiError> {
        if user.admin {
            return Ok(Some(Role::Admin));
        }
        if app.owner == user.id {
            return Ok(Some(Role::Owner));
        }
        let found = self.db.get::<Collaborator>(&keys::collaborator(app.id, user.id)).await?;
        Ok(found.map(|_| Role::Collaborator))
    }

    /// Whether a user who signed in by another way than the API may what a route of the API does to an app: the same table
    /// decides.
    ///
    /// # Errors
    /// As the API answers.
    pub async fn may(
        &self,
        user: flex_model::UserId,
        app: &str,
        method: &str,
        path: &str,
    ) -> Result<(Actor, Arc<App>), ApiError> {
        let method = axum::http::Method::from_bytes(method.as_bytes()).unwrap_or_default();
        let route = find(&method, path).ok_or_else(|| ApiError::new(ErrorId::NotFound, "There is no such route."))?;
        let user = self.user(user).await?.ok_or_else(app_not_found)?;
        let found = self.find_app(app).await?;
        match (self.role_in(&user, &found).await?, route.needs) {
            (None, _) => Err(app_not_found()),
            (Some(Role::Collaborator), Needs::AppOwner) => {
                Err(ApiError::new(ErrorId::Forbidden, "Only the app's owner may do this."))
            }
            (Some(role), Needs::Admin) if role != Role::Admin => {
                Err(ApiError::new(ErrorId::Forbidden, "Only an administrator may do this."))
            }
            (Some(_), Needs::Router) => Err(ApiError::new(ErrorId::Forbidden, "Only a router may do this.")),
            (Some(_), Needs::Nothing | Needs::User | Needs::App | Needs::AppOwner | Needs::Admin) => {
                Ok((Actor::user(user.id, &user.email), found))
            }
        }
    }

    /// The user whose credentials a request carries: `Bearer TOKEN`, or Basic with a token as the password, as git and
    /// Heroku's client send it.
    async fn caller(&self, authorization: Option<&str>) -> Result<Option<(Arc<User>, Arc<Token>)>, ApiError> {
        let Some(value) = authorization else { return Ok(None) };
        let token = match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim().to_owned(),
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("basic") => match basic(value) {
                Some((_, password)) => password,
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        self.user_by_token(&token).await
    }

    /// Counts a request, and says how many more there may be.
    fn count(&self, user: &User) -> Result<u64, ApiError> {
        let now = Instant::now();
        let left = lock(&self.calls).entry(user.id).or_insert_with(|| Bucket::new(now)).take(now);
        left.ok_or_else(|| ApiError::new(ErrorId::RateLimit, "Too many requests. Wait a second, and make fewer."))
    }
}

/// Name and password of a Basic header.
pub fn basic(value: &str) -> Option<(String, String)> {
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    text.split_once(':').map(|(u, p)| (u.to_owned(), p.to_owned()))
}

/// The middleware: denies what the table does not allow, and hands the caller (and the app) on.
pub async fn check(State(controller): State<Controller>, mut request: Request, next: Next) -> Response {
    let is_registry = request.uri().path().starts_with("/v2/");
    let mut response = match admit(&controller, &mut request).await {
        Ok(left) => {
            let mut response = next.run(request).await;
            if let Some(left) = left {
                response.headers_mut().insert("ratelimit-remaining", HeaderValue::from(left));
            }
            response
        }
        Err(e) => {
            // What a client still sends would otherwise be in the way of the answer.
            drop(std::mem::replace(request.body_mut(), Body::empty()));
            if is_registry { registry_failure(&e) } else { Failure(e).into_response() }
        }
    };
    if is_registry {
        response.headers_mut().insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
    }
    response
}

/// An error in the shape that registry clients read.
pub fn refused_by_registry(status: StatusCode, code: &str, message: &str) -> Response {
    (status, axum::Json(serde_json::json!({ "errors": [{ "code": code, "message": message }] }))).into_response()
}

fn registry_failure(e: &ApiError) -> Response {
    let status = StatusCode::from_u16(e.id.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let code = match e.id {
        ErrorId::Unauthorized => "UNAUTHORIZED",
        ErrorId::Forbidden => "DENIED",
        ErrorId::NotFound => "NAME_UNKNOWN",
        ErrorId::RateLimit => "TOOMANYREQUESTS",
        _ => "UNKNOWN",
    };
    let mut response = refused_by_registry(status, code, &e.message);
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"flex\""));
    }
    response
}

/// Lets a request in, or says why not. How many more its user may make; nothing where nobody is asked for.
async fn admit(controller: &Controller, request: &mut Request) -> Result<Option<u64>, ApiError> {
    let path = request.extensions().get::<MatchedPath>().map(|m| m.as_str().to_owned()).unwrap_or_default();
    let route = find(request.method(), &path)
        .ok_or_else(|| ApiError::new(ErrorId::NotFound, "The requested API endpoint was not found."))?;
    let needs = route.needs;
    if needs == Needs::Nothing {
        return Ok(None);
    }
    let authorization = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).map(str::to_owned);
    if needs == Needs::Router {
        let name = controller.router_of(authorization.as_deref()).await?;
        request.extensions_mut().insert(RouterName(name));
        return Ok(None);
    }
    let found = controller.caller(authorization.as_deref()).await?;
    let (user, token) = found.ok_or_else(|| ApiError::new(ErrorId::Unauthorized, "Invalid credentials provided."))?;
    let left = controller.count(&user)?;
    if !token.scope.iter().any(|s| route.is_reached_by(*s)) {
        let has = token.scope.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ");
        return Err(ApiError::new(ErrorId::Forbidden, format!("This token's scope ({has}) does not allow it.")));
    }
    match needs {
        Needs::Nothing | Needs::User | Needs::Router => {}
        Needs::Admin if user.admin => {}
        Needs::Admin => return Err(ApiError::new(ErrorId::Forbidden, "Only an administrator may do this.")),
        Needs::App | Needs::AppOwner => {
            // /apps/{app}/…
            let name = request.uri().path().split('/').nth(2).unwrap_or_default().to_owned();
            let app = controller.find_app(&name).await?;
            match controller.role_in(&user, &app).await? {
                // Whether it exists is none of a stranger's business.
                None => return Err(app_not_found()),
                Some(Role::Collaborator) if needs == Needs::AppOwner => {
                    return Err(ApiError::new(ErrorId::Forbidden, "Only the app's owner may do this."));
                }
                Some(_) => {}
            }
            request.extensions_mut().insert(app);
        }
    }
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|c| c.0.ip().to_canonical());
    request.extensions_mut().insert(Caller { user, from });
    Ok(Some(left))
}
