//! Users, keys and tokens.

use super::access::{Caller, basic};
use super::answer::{Answer, Body, Listed, Made, Shown};
use super::list::{Key, Range};
use super::{parse, render};
use crate::core::{Actor, Controller, invalid, not_found};
use crate::db::keys;
use axum::Extension;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, header};
use flex_api::{Account, AddKey, AddUser, ApiError, Authorization, CreateAuthorization, ErrorId};
use flex_model::user::Scope;
use flex_model::{Secret, Token, TokenId, User};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The longest life that a token that ends may be given: a hundred years, so that no sum overflows.
const MAX_LIFE: u64 = 100 * 366 * 86_400;

/// Makes a token, for whoever knows the password or holds a token that may do everything. A token cannot make one that
/// outlives it.
pub async fn authorize(
    State(c): State<Controller>,
    came: Option<Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    Body(body): Body<CreateAuthorization>,
) -> Answer<Made<Authorization>> {
    let refused = || ApiError::new(ErrorId::Unauthorized, "Invalid credentials provided.");
    let value = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).ok_or_else(refused)?;
    let by_token = match (basic(value), value.split_once(' ')) {
        (Some((_, password)), _) => c.user_by_token(&password).await?,
        (None, Some((scheme, token))) if scheme.eq_ignore_ascii_case("bearer") => c.user_by_token(token.trim()).await?,
        _ => None,
    };
    let (user, asking) = match (by_token, basic(value)) {
        (Some((user, token)), _) => (Some(user), Some(token)),
        (None, Some((email, password))) => (c.user_by_password(&email, &password).await?, None),
        (None, None) => (None, None),
    };
    let user = user.ok_or_else(refused)?;
    if asking.as_ref().is_some_and(|t| !t.scope.contains(&Scope::Global)) {
        return Err(ApiError::new(ErrorId::Forbidden, "Only a token with the scope global may make tokens.").into());
    }
    let mut scope = body.scope.iter().flatten().map(|s| parse::<Scope>(s)).collect::<Result<Vec<_>, _>>()?;
    scope.sort_unstable();
    scope.dedup();
    if scope.is_empty() {
        scope.push(Scope::Global);
    }
    if body.expires_in.is_some_and(|s| !(1..=MAX_LIFE).contains(&s)) {
        return Err(invalid(format!("expires_in must be between 1 and {MAX_LIFE} seconds.")).into());
    }
    let asked = body.expires_in.map(|s| c.now().plus(Duration::from_secs(s)));
    let expires = [asked, asking.and_then(|t| t.expires_at)].into_iter().flatten().min();
    let actor = Actor::user(user.id, &user.email).at(came.map(|Extension(ConnectInfo(a))| a.ip().to_canonical().to_string()));
    let description = body.description.as_deref().unwrap_or("API token");
    let (token, secret) = c.create_token(&actor, &user, description, scope, expires).await?;
    Ok(Made(render::token(&token, &user, Some(secret), c.now())))
}

pub async fn authorizations(
    State(c): State<Controller>,
    Extension(caller): Extension<Caller>,
    range: Range,
) -> Answer<Listed<Authorization>> {
    let tokens = c.tokens_of(caller.user.id).await?;
    let by = [("created_at", (|t| Key::Time(t.created_at)) as fn(&Arc<Token>) -> Key)];
    range.page(tokens, |t| t.id.to_string(), &by)?.show(|t| render::token(&t, &caller.user, None, c.now()))
}

fn token_id(text: &str) -> Result<TokenId, ApiError> {
    text.parse().map_err(|_| not_found("Couldn't find that authorization."))
}

pub async fn authorization(
    State(c): State<Controller>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<Shown<Authorization>> {
    let id = token_id(&id)?;
    let found = c.tokens_of(caller.user.id).await?.into_iter().find(|t| t.id == id);
    let token = found.ok_or_else(|| not_found("Couldn't find that authorization."))?;
    Ok(Shown(render::token(&token, &caller.user, None, c.now())))
}

pub async fn revoke(
    State(c): State<Controller>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<Shown<Authorization>> {
    let token = c.delete_token(&caller.actor(), &caller.user, token_id(&id)?).await?;
    Ok(Shown(render::token(&token, &caller.user, None, c.now())))
}

pub async fn account(Extension(caller): Extension<Caller>) -> Answer<Shown<Account>> {
    Ok(Shown(render::user(&caller.user)))
}

pub async fn keys(
    State(c): State<Controller>,
    Extension(caller): Extension<Caller>,
    range: Range,
) -> Answer<Listed<flex_api::Key>> {
    let keys = c.keys_of(caller.user.id).await?;
    range
        .page(keys, |k| k.id.to_string(), &[("created_at", |k| Key::Time(k.created_at))])?
        .show(|k| render::key(&k, &caller.user))
}

pub async fn add_key(
    State(c): State<Controller>,
    Extension(caller): Extension<Caller>,
    Body(body): Body<AddKey>,
) -> Answer<Made<flex_api::Key>> {
    let key = c.add_key(&caller.actor(), &caller.user, &body.public_key).await?;
    Ok(Made(render::key(&key, &caller.user)))
}

pub async fn key(
    State(c): State<Controller>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<Shown<flex_api::Key>> {
    let found = c.find_key(caller.user.id, &id).await?;
    Ok(Shown(render::key(&found.value, &caller.user)))
}

pub async fn remove_key(
    State(c): State<Controller>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<Shown<flex_api::Key>> {
    let gone = c.remove_key(&caller.actor(), &caller.user, &id).await?;
    Ok(Shown(render::key(&gone, &caller.user)))
}

pub async fn users(State(c): State<Controller>, range: Range) -> Answer<Listed<Account>> {
    let users: Vec<Arc<User>> = c.db.list::<User>(keys::USERS).await?.into_iter().map(|u| u.value).collect();
    range.page(users, |u| u.id.to_string(), &[("email", |u| Key::Text(u.email.to_string()))])?.show(|u| render::user(&u))
}

pub async fn add_user(
    State(c): State<Controller>,
    Extension(caller): Extension<Caller>,
    Body(body): Body<AddUser>,
) -> Answer<Made<Account>> {
    let user = c.create_user(&caller.actor(), &body.email, body.password, body.admin).await?;
    Ok(Made(render::user(&user)))
}

impl Controller {
    /// A token for a user, who is made first if need be: how the first administrator comes in, on the server itself.
    ///
    /// # Errors
    /// The store's.
    pub async fn bootstrap(&self, email: &flex_model::Email, admin: bool) -> Result<Secret, ApiError> {
        let user = self.ensure_user(&Actor::platform(), email, admin).await?;
        if admin && !user.admin {
            return Err(ApiError::new(ErrorId::InvalidParams, format!("{email} exists and is no administrator.")));
        }
        self.create_token(&Actor::user(user.id, &user.email), &user, "made on the server", vec![Scope::Global], None)
            .await
            .map(|(_, secret)| secret)
    }
}
