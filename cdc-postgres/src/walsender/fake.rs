//! A server for tests: answers the login and commands of a walsender client, then sends what a test gives it.

use crate::connection::{ConnectionSettings, Secret, Tls};
use bytes::{BufMut as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Start of the answer to a login without password.
pub(super) const TRUST: &[u8] = b"R\0\0\0\x08\0\0\0\0";

/// Listens on a port of its own; returns settings that lead there.
pub(super) async fn listen() -> (TcpListener, ConnectionSettings) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let mut settings = ConnectionSettings::new("127.0.0.1", "db", "u", Secret::new("hunter2".to_owned()));
    settings.port = listener.local_addr().expect("bound").port();
    settings.tls = Tls::Disable;
    (listener, settings)
}

/// One message with its tag and length.
pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("small");
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

/// A change message as it comes within the stream.
pub(super) fn data(start: u64, end: u64, payload: &[u8]) -> Vec<u8> {
    let mut body = BytesMut::new();
    body.put_u8(b'w');
    body.put_u64(start);
    body.put_u64(end);
    body.put_u64(0);
    body.put_slice(payload);
    message(b'd', &body)
}

/// A keepalive as it comes within the stream.
pub(super) fn keepalive(end: u64, reply: bool) -> Vec<u8> {
    let mut body = BytesMut::new();
    body.put_u8(b'k');
    body.put_u64(end);
    body.put_u64(0);
    body.put_u8(u8::from(reply));
    message(b'd', &body)
}

/// Reads the start-up message; returns its parameters as they were sent.
pub(super) async fn read_startup(server: &mut TcpStream) -> Vec<u8> {
    let length = server.read_u32().await.expect("a start-up message");
    let mut rest = vec![0; length as usize - 4];
    server.read_exact(&mut rest).await.expect("a start-up message");
    rest
}

/// Reads one message of the client.
pub(super) async fn read_message(server: &mut TcpStream) -> (u8, Vec<u8>) {
    let tag = server.read_u8().await.expect("a message");
    let length = server.read_u32().await.expect("a message");
    let mut body = vec![0; length as usize - 4];
    server.read_exact(&mut body).await.expect("a message");
    (tag, body)
}

/// Lets a client log in; it will ask for the identity next.
pub(super) async fn accept(listener: &TcpListener) -> TcpStream {
    let (mut server, _) = listener.accept().await.expect("a client");
    read_startup(&mut server).await;
    let mut output = TRUST.to_vec();
    for (name, value) in [
        ("DateStyle", "ISO, MDY"),
        ("IntervalStyle", "iso_8601"),
        ("TimeZone", "UTC"),
        ("client_encoding", "UTF8"),
        ("standard_conforming_strings", "on"),
        ("server_version", "15.18"),
    ] {
        output.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
    }
    output.extend(message(b'Z', b"I"));
    server.write_all(&output).await.expect("a client");
    server
}

/// Answers a command with one row.
pub(super) async fn answer(server: &mut TcpStream, command: &str, row: &[&str]) {
    let (tag, body) = read_message(server).await;
    assert_eq!((tag, String::from_utf8_lossy(&body)), (b'Q', format!("{command}\0").into()));
    let mut fields = BytesMut::new();
    fields.put_u16(u16::try_from(row.len()).expect("small"));
    for field in row {
        fields.put_u32(u32::try_from(field.len()).expect("small"));
        fields.put_slice(field.as_bytes());
    }
    let output = [message(b'D', &fields), message(b'C', b"OK\0"), message(b'Z', b"I")].concat();
    server.write_all(&output).await.expect("a client");
}

/// Takes a client all the way into the stream.
pub(super) async fn accept_stream(listener: &TcpListener) -> TcpStream {
    let mut server = accept(listener).await;
    answer(&mut server, "IDENTIFY_SYSTEM", &["7", "1", "0/1", "db"]).await;
    let (tag, _) = read_message(&mut server).await;
    assert_eq!(tag, b'Q');
    server.write_all(&message(b'W', &[0, 0, 0])).await.expect("a client");
    server
}

/// A status message of the client: written, flushed, applied, whether it asks for a reply.
pub(super) async fn read_status(server: &mut TcpStream) -> (u64, u64, u64, bool) {
    let (tag, body) = read_message(server).await;
    assert_eq!((tag, body.first(), body.len()), (b'd', Some(&b'r'), 34));
    let number = |at: usize| u64::from_be_bytes(body[at..at + 8].try_into().expect("eight bytes"));
    (number(1), number(9), number(17), body[33] == 1)
}
