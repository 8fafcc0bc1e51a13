//! Users, their keys and tokens. Passwords are kept as Argon2id, tokens as SHA-256: what is stored cannot sign in.

use crate::core::{Actor, Controller, invalid, not_found};
use crate::crypt::random;
use crate::db::{Stored, Tx, keys};
use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use flex_api::{ApiError, ErrorId};
use flex_model::user::Scope;
use flex_model::{Email, KeyId, Secret, SshKey, Timestamp, Token, TokenId, User, UserId};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How tokens begin, so that scanners of leaked secrets can know them.
const TOKEN_PREFIX: &str = "flx_";
/// Keys weaker than this are refused.
const MIN_RSA_BITS: usize = 3072;
const MIN_PASSWORD: usize = 8;
/// Wrong passwords of one user within [`MINUTE`] before no more are looked at.
const WRONG_PASSWORDS: u32 = 5;
const MINUTE: Duration = Duration::from_secs(60);

/// What is stored of a token.
pub fn token_hash(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

impl Controller {
    pub async fn user(&self, id: UserId) -> Result<Option<Arc<User>>, ApiError> {
        Ok(self.db.get::<User>(&keys::user(id)).await?.map(|s| s.value))
    }

    /// A user's e-mail for display.
    pub async fn email_of(&self, id: UserId) -> String {
        self.user(id).await.ok().flatten().map_or_else(|| "flex".into(), |u| u.email.to_string())
    }

    pub async fn user_by_email(&self, email: &Email) -> Result<Option<Arc<User>>, ApiError> {
        match self.db.get::<UserId>(&keys::email(email)).await? {
            Some(id) => self.user(*id.value).await,
            None => Ok(None),
        }
    }

    /// The user whose token it is.
    pub async fn user_by_token(&self, token: &str) -> Result<Option<(Arc<User>, Arc<Token>)>, ApiError> {
        let Some(found) = self.db.get::<Token>(&keys::token(&token_hash(token))).await? else { return Ok(None) };
        if found.value.expires_at.is_some_and(|t| t <= self.now()) {
            return Ok(None);
        }
        Ok(self.user(found.value.user).await?.map(|u| (u, found.value)))
    }

    /// The user with this e-mail and password. As slow for an unknown e-mail as for a wrong password, and refused after
    /// some wrong ones within a minute.
    pub async fn user_by_password(&self, email: &str, password: &str) -> Result<Option<Arc<User>>, ApiError> {
        let who: String = email.chars().take(200).collect::<String>().to_lowercase();
        if crate::core::lock(&self.sign_ins).get(&who).is_some_and(|(n, since)| *n >= WRONG_PASSWORDS && since.elapsed() < MINUTE)
        {
            return Err(ApiError::new(ErrorId::RateLimit, "Too many wrong passwords. Try again in a minute."));
        }
        let found = self.check_password(email, password).await?;
        let mut wrong = crate::core::lock(&self.sign_ins);
        wrong.retain(|_, (_, since)| since.elapsed() < MINUTE);
        if found.is_some() {
            wrong.remove(&who);
        } else {
            wrong.entry(who).or_insert_with(|| (0, Instant::now())).0 += 1;
        }
        Ok(found)
    }

    async fn check_password(&self, email: &str, password: &str) -> Result<Option<Arc<User>>, ApiError> {
        let user = match email.parse::<Email>() {
            Ok(email) => self.user_by_email(&email).await?,
            Err(_) => None,
        };
        let hash = user.as_ref().and_then(|u| u.password_hash.clone());
        let password = Secret::new(password);
        // Each takes a core and 19 MiB: not many at once, whoever asks.
        let _turn = self.hashing.acquire().await;
        let good = tokio::task::spawn_blocking(move || match hash {
            Some(hash) => PasswordHash::new(&hash)
                .is_ok_and(|h| Argon2::default().verify_password(password.expose().as_bytes(), &h).is_ok()),
            None => {
                let _ = hash_password(&password);
                false
            }
        })
        .await
        .unwrap_or(false);
        Ok(user.filter(|_| good))
    }

    /// Makes a user, or gives back the one with that e-mail.
    pub async fn ensure_user(&self, actor: &Actor, email: &Email, admin: bool) -> Result<Arc<User>, ApiError> {
        if let Some(user) = self.user_by_email(email).await? {
            return Ok(user);
        }
        match self.create_user(actor, email, None, admin).await {
            Ok(user) => Ok(user),
            Err(e) => self.user_by_email(email).await?.ok_or(e),
        }
    }

    pub async fn create_user(
        &self,
        actor: &Actor,
        email: &Email,
        password: Option<Secret>,
        admin: bool,
    ) -> Result<Arc<User>, ApiError> {
        let password_hash = match password {
            Some(p) if p.expose().len() < MIN_PASSWORD => {
                return Err(invalid(format!("The password must have at least {MIN_PASSWORD} characters.")));
            }
            Some(p) => Some(
                tokio::task::spawn_blocking(move || hash_password(&p))
                    .await
                    .ok()
                    .flatten()
                    .ok_or_else(|| ApiError::new(ErrorId::Internal, "The password cannot be hashed."))?,
            ),
            None => None,
        };
        let user = User { id: self.id(), email: email.clone(), admin, password_hash, created_at: self.now() };
        self.db
            .retry(|| async {
                let by_email = keys::email(email);
                if self.db.get::<UserId>(&by_email).await?.is_some() {
                    return Err(invalid(format!("There is a user {email} already.")));
                }
                let event = self.event(actor, None, "user.create", format!("Added user {email}"));
                let tx = Tx::new()
                    .absent(&by_email)
                    .put(by_email.clone(), &user.id)
                    .put(keys::user(user.id), &user)
                    .put(keys::event(&event), &event);
                Ok((tx, ()))
            })
            .await?;
        Ok(Arc::new(user))
    }

    /// Makes a token; its text is given out here and never again.
    pub async fn create_token(
        &self,
        actor: &Actor,
        user: &User,
        description: &str,
        scope: Vec<Scope>,
        expires_at: Option<Timestamp>,
    ) -> Result<(Token, Secret), ApiError> {
        let text = format!("{TOKEN_PREFIX}{}", hex::encode(random::<32>()));
        let token = Token {
            id: self.id(),
            user: user.id,
            description: description.chars().take(200).collect(),
            sha256: token_hash(&text),
            created_at: self.now(),
            expires_at,
            scope,
        };
        let event = self.event(actor, None, "token.create", format!("Made a token: {}", token.description));
        let tx = Tx::new().put(keys::token(&token.sha256), &token).put(keys::event(&event), &event);
        self.db.commit(tx).await.map_err(crate::core_error)?;
        Ok((token, Secret::new(text)))
    }

    pub async fn tokens_of(&self, user: UserId) -> Result<Vec<Arc<Token>>, ApiError> {
        let all = self.db.list::<Token>(keys::TOKENS).await?;
        Ok(all.into_iter().map(|s| s.value).filter(|t| t.user == user).collect())
    }

    pub async fn delete_token(&self, actor: &Actor, user: &User, id: TokenId) -> Result<Arc<Token>, ApiError> {
        let token = self.tokens_of(user.id).await?.into_iter().find(|t| t.id == id);
        let token = token.ok_or_else(|| not_found("Couldn't find that authorization."))?;
        let event = self.event(actor, None, "token.delete", format!("Removed a token: {}", token.description));
        let tx = Tx::new().delete(keys::token(&token.sha256)).put(keys::event(&event), &event);
        self.db.commit(tx).await.map_err(crate::core_error)?;
        Ok(token)
    }

    pub async fn keys_of(&self, user: UserId) -> Result<Vec<Arc<SshKey>>, ApiError> {
        let all = self.db.list::<SshKey>(keys::SSH_KEYS).await?;
        Ok(all.into_iter().map(|s| s.value).filter(|k| k.user == user).collect())
    }

    /// The user whose key this is; `openssh` is `type base64`.
    pub async fn user_by_key(&self, openssh: &str) -> Result<Option<Arc<User>>, ApiError> {
        let Ok((_, fingerprint, _)) = parse_key(openssh) else { return Ok(None) };
        let Some(id) = self.db.get::<KeyId>(&keys::fingerprint(&fingerprint)).await? else { return Ok(None) };
        let Some(key) = self.db.get::<SshKey>(&keys::ssh_key(*id.value)).await? else { return Ok(None) };
        self.user(key.value.user).await
    }

    pub async fn add_key(&self, actor: &Actor, user: &User, text: &str) -> Result<Arc<SshKey>, ApiError> {
        let (public_key, fingerprint, comment) = parse_key(text)?;
        let key = SshKey { id: self.id(), user: user.id, public_key, fingerprint, comment, created_at: self.now() };
        self.db
            .retry(|| async {
                let by_fingerprint = keys::fingerprint(&key.fingerprint);
                if let Some(id) = self.db.get::<KeyId>(&by_fingerprint).await? {
                    let owner = self.db.get::<SshKey>(&keys::ssh_key(*id.value)).await?;
                    let mine = owner.is_some_and(|o| o.value.user == user.id);
                    return Err(invalid(if mine { "You have added this key already." } else { "Another user has this key." }));
                }
                let event = self.event(actor, None, "key.create", format!("Added SSH key {}", key.fingerprint));
                let tx = Tx::new()
                    .absent(&by_fingerprint)
                    .put(by_fingerprint.clone(), &key.id)
                    .put(keys::ssh_key(key.id), &key)
                    .put(keys::event(&event), &event);
                Ok((tx, ()))
            })
            .await?;
        Ok(Arc::new(key))
    }

    pub async fn find_key(&self, user: UserId, id_or_fingerprint: &str) -> Result<Stored<Arc<SshKey>>, ApiError> {
        let all = self.db.list::<SshKey>(keys::SSH_KEYS).await?;
        all.into_iter()
            .find(|k| {
                k.value.user == user && (k.value.id.to_string() == id_or_fingerprint || k.value.fingerprint == id_or_fingerprint)
            })
            .ok_or_else(|| not_found("Couldn't find that key."))
    }

    pub async fn remove_key(&self, actor: &Actor, user: &User, id_or_fingerprint: &str) -> Result<Arc<SshKey>, ApiError> {
        let key = self.find_key(user.id, id_or_fingerprint).await?;
        let event = self.event(actor, None, "key.delete", format!("Removed SSH key {}", key.value.fingerprint));
        let tx = Tx::new()
            .delete(keys::ssh_key(key.value.id))
            .delete(keys::fingerprint(&key.value.fingerprint))
            .put(keys::event(&event), &event);
        self.db.commit(tx).await.map_err(crate::core_error)?;
        Ok(key.value)
    }
}

fn hash_password(password: &Secret) -> Option<String> {
    let salt = SaltString::encode_b64(&random::<16>()).ok()?;
    Argon2::default().hash_password(password.expose().as_bytes(), &salt).ok().map(|h| h.to_string())
}

/// Reads a public key line: the normalised line, its fingerprint as `ssh-keygen -l` prints it, its comment.
fn parse_key(text: &str) -> Result<(String, String, String), ApiError> {
    let refuse = |why: &str| Err(invalid(format!("This is no SSH public key: {why}. Give the one line of a .pub file.")));
    let mut words = text.split_whitespace();
    let (Some(kind), Some(body)) = (words.next(), words.next()) else { return refuse("a key type and a key are expected") };
    let allowed = [
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
    ];
    if !allowed.contains(&kind) {
        return refuse("its type is not one of ed25519, ecdsa or rsa");
    }
    let Ok(blob) = STANDARD.decode(body) else { return refuse("it is not base64") };
    let mut fields = Fields(&blob);
    if fields.next() != Some(kind.as_bytes()) {
        return refuse("its type and its content differ");
    }
    if kind == "ssh-rsa" {
        let bits = fields.nth(1).map_or(0, |n| n.iter().skip_while(|b| **b == 0).count() * 8);
        if bits < MIN_RSA_BITS {
            return refuse(&format!(
                "an RSA key needs at least {MIN_RSA_BITS} bits; make a better one with ssh-keygen -t ed25519"
            ));
        }
    }
    let comment: String = words.collect::<Vec<_>>().join(" ").chars().filter(|c| !c.is_control()).take(200).collect();
    let fingerprint = format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&blob)));
    Ok((format!("{kind} {body} {comment}").trim().to_owned(), fingerprint, comment))
}

/// The length-prefixed fields of an SSH key (RFC 4251 section 5).
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = &'a [u8];
    fn next(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = self.0.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
        let (field, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_ssh_keygen_reads_them() {
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl  me@example.com\n";
        let (key, fingerprint, comment) = parse_key(line).unwrap();
        assert_eq!(fingerprint, "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU");
        assert_eq!((comment.as_str(), key.split(' ').count()), ("me@example.com", 3));
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 !!!",
            "ssh-dss AAAA",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
        ] {
            assert!(parse_key(bad).is_err(), "{bad}");
        }
    }
}
