//! Login of the replication connection: start-up message and authentication. Owns which kinds of login are answered (R3).

use super::{Walsender, into_connect_error, parse, server_error};
use crate::connection::{ChannelBinding, ConnectError, ConnectionSettings, SESSION_OPTIONS, refused_method};
use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::sasl;
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::AsyncWriteExt as _;
use zeroize::Zeroize as _;

impl Walsender {
    pub(super) async fn login(&mut self, settings: &ConnectionSettings) -> Result<(), ConnectError> {
        self.send_startup(settings).await?;
        self.authenticate(settings).await?;
        loop {
            match self.login_message().await? {
                Message::ParameterStatus(body) => {
                    let name = body.name().map_err(protocol)?.to_owned();
                    let value = body.value().map_err(protocol)?.to_owned();
                    self.parameters.insert(name, value);
                }
                Message::BackendKeyData(_) | Message::NoticeResponse(_) => {}
                Message::ReadyForQuery(_) => return Ok(()),
                _ => return Err(ConnectError::Protocol("unexpected message after the login".to_owned())),
            }
        }
    }

    async fn send_startup(&mut self, settings: &ConnectionSettings) -> Result<(), ConnectError> {
        let options = format!("{SESSION_OPTIONS} {}", super::SLOT_LOCK_TIMEOUT);
        let parameters = [
            ("user", settings.user.as_str()),
            ("database", settings.database.as_str()),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", settings.application_name.as_str()),
            ("options", options.as_str()),
        ];
        let mut output = BytesMut::new();
        frontend::startup_message(parameters, &mut output)
            .map_err(|error| ConnectError::Settings(error.to_string()))?;
        self.send(output).await
    }

    async fn authenticate(&mut self, settings: &ConnectionSettings) -> Result<(), ConnectError> {
        match self.login_message().await? {
            Message::AuthenticationOk => return self.without_binding(settings),
            Message::AuthenticationSasl(body) => self.scram(&body, settings).await?,
            Message::AuthenticationCleartextPassword => {
                if let Some(method) = refused_method(3, self.stream.is_verified()) {
                    return Err(ConnectError::AuthMethod(method));
                }
                self.without_binding(settings)?;
                let mut output = BytesMut::new();
                frontend::password_message(settings.password.expose().as_bytes(), &mut output)
                    .map_err(|error| ConnectError::Settings(error.to_string()))?;
                self.send(output).await?;
            }
            other => return Err(other_login(&other)),
        }
        match self.login_message().await? {
            Message::AuthenticationOk => Ok(()),
            _ => Err(ConnectError::Protocol("the login ended without a verdict".to_owned())),
        }
    }

    async fn scram(
        &mut self,
        offered: &AuthenticationSaslBody,
        settings: &ConnectionSettings,
    ) -> Result<(), ConnectError> {
        let (binding, mechanism) = self.choose_mechanism(offered, settings)?;
        let mut scram = sasl::ScramSha256::new(settings.password.expose().as_bytes(), binding);
        let mut output = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut output).map_err(protocol)?;
        self.send(output).await?;

        match self.login_message().await? {
            Message::AuthenticationSaslContinue(body) => scram.update(body.data()).map_err(protocol)?,
            _ => return Err(ConnectError::Protocol("unexpected message within the login".to_owned())),
        }
        let mut output = BytesMut::new();
        frontend::sasl_response(scram.message(), &mut output).map_err(protocol)?;
        self.send(output).await?;

        match self.login_message().await? {
            Message::AuthenticationSaslFinal(body) => scram.finish(body.data()).map_err(protocol),
            _ => Err(ConnectError::Protocol("the server did not prove that it knows the password".to_owned())),
        }
    }

    fn choose_mechanism(
        &self,
        offered: &AuthenticationSaslBody,
        settings: &ConnectionSettings,
    ) -> Result<(sasl::ChannelBinding, &'static str), ConnectError> {
        let (mut plain, mut plus) = (false, false);
        let mut mechanisms = offered.mechanisms();
        while let Some(mechanism) = mechanisms.next().map_err(protocol)? {
            plain |= mechanism == sasl::SCRAM_SHA_256;
            plus |= mechanism == sasl::SCRAM_SHA_256_PLUS;
        }
        match &self.stream.binding {
            Some(hash) if plus => {
                let binding = sasl::ChannelBinding::tls_server_end_point(hash.clone());
                return Ok((binding, sasl::SCRAM_SHA_256_PLUS));
            }
            _ => self.without_binding(settings)?,
        }
        match &self.stream.binding {
            _ if !plain => Err(ConnectError::AuthMethod("unknown sasl")),
            // Tells the server that binding was possible, so that it notices if somebody cut it from the offer.
            Some(_) => Ok((sasl::ChannelBinding::unrequested(), sasl::SCRAM_SHA_256)),
            None => Ok((sasl::ChannelBinding::unsupported(), sasl::SCRAM_SHA_256)),
        }
    }

    fn without_binding(&self, settings: &ConnectionSettings) -> Result<(), ConnectError> {
        match settings.channel_binding {
            ChannelBinding::Prefer => Ok(()),
            ChannelBinding::Require => Err(ConnectError::ChannelBinding),
        }
    }

    async fn send(&mut self, mut output: BytesMut) -> Result<(), ConnectError> {
        self.stream.write_all(&output).await?;
        self.stream.flush().await?;
        output.as_mut().zeroize();
        Ok(())
    }

    /// The next message; an error message becomes the error.
    async fn login_message(&mut self) -> Result<Message, ConnectError> {
        let mut frame = self.frame().await.map_err(into_connect_error)?;
        match parse(&mut frame).map_err(into_connect_error)? {
            Message::ErrorResponse(body) => Err(ConnectError::from_server(server_error(&body), true)),
            message => Ok(message),
        }
    }
}

fn other_login(message: &Message) -> ConnectError {
    let kind = match message {
        Message::AuthenticationMd5Password(_) => 5,
        Message::AuthenticationKerberosV5 => 2,
        Message::AuthenticationScmCredential => 6,
        Message::AuthenticationGss => 7,
        Message::AuthenticationSspi => 9,
        _ => return ConnectError::Protocol("unexpected message instead of a login".to_owned()),
    };
    ConnectError::AuthMethod(refused_method(kind, true).unwrap_or("unknown"))
}

fn protocol(error: std::io::Error) -> ConnectError {
    ConnectError::Protocol(error.to_string())
}
