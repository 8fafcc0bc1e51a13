//! Passwords of routes that go along with a copy of an app's settings.
//!
//! The API shows nobody even the hash of a password, so that a copy names one by where it is: it has [`HIDDEN`] in its
//! place, and says of which app and route. Invariant: it is taken only from an app in which the caller has a role, which
//! lets them change it there as well.

use crate::core::{Controller, app_not_found, invalid};
use flex_api::{ApiError, PasswordsOf};
use flex_model::User;
use flex_model::http_policy::{BasicAuth, HIDDEN};
use serde_json::{Map, Value};

impl Controller {
    /// Puts what is stored there in place of each hidden password in settings of HTTP.
    ///
    /// # Errors
    /// The app or route is not there, or does not know one of the users.
    pub async fn carry_passwords(&self, user: &User, of: &PasswordsOf, http: &mut Map<String, Value>) -> Result<(), ApiError> {
        let app = self.find_app(&of.app).await?;
        self.role_in(user, &app).await?.ok_or_else(app_not_found)?;
        let stored = match &of.route {
            Some(route) => {
                let found = self.find_route(&app, route).await?;
                found.value.route.policy.as_ref().and_then(|p| p.http.basic_auth.on().cloned())
            }
            None => self.routing_of(app.id).await?.http.basic_auth.on().cloned(),
        };
        fill(stored.as_ref(), http)
    }
}

fn fill(stored: Option<&BasicAuth>, http: &mut Map<String, Value>) -> Result<(), ApiError> {
    let users = http.get_mut("basic_auth").and_then(|a| a.get_mut("users")).and_then(Value::as_object_mut);
    for (name, password) in users.into_iter().flatten().filter(|(_, p)| p.as_str() == Some(HIDDEN)) {
        let known = stored.and_then(|s| s.users.get(name));
        let known = known.ok_or_else(|| invalid(format!("passwords_of: no password of {name} is there to be taken.")))?;
        *password = known.expose().into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_hidden_is_taken_and_nothing_else() {
        let stored: BasicAuth = serde_json::from_value(json!({ "users": { "ann": "hash-a", "bob": "hash-b" } })).unwrap();
        let with = |users: Value| match json!({ "timeout_seconds": 5, "basic_auth": { "realm": "in", "users": users } }) {
            Value::Object(http) => http,
            _ => unreachable!(),
        };
        let mut http = with(json!({ "ann": HIDDEN, "cara": "new" }));
        fill(Some(&stored), &mut http).unwrap();
        assert_eq!(http, with(json!({ "ann": "hash-a", "cara": "new" })));
        for from in [Some(&stored), None] {
            let refused = fill(from, &mut with(json!({ "dora": HIDDEN }))).unwrap_err();
            assert!(refused.message.contains("dora"), "{}", refused.message);
        }
        fill(None, &mut Map::new()).unwrap();
    }
}
