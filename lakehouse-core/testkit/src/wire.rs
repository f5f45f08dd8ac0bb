//! HTTP/1.1 messages as the bytes they are, for servers that stand between a client and another server.
//!
//! A library's request would have its path normalised, its headers sorted and its body framed anew; what passes here
//! stays as the client signed it. It also lets a server do what a library forbids: say nothing, or half an answer.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::ops::Range;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// No request of ours has a longer head; a peer that sends one is not speaking HTTP.
const LONGEST_HEAD: usize = 1 << 20;

/// A request or an answer, exactly as it came over the wire.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    /// The first line and the headers, with the empty line that ends them.
    head: Vec<u8>,
    /// The body with its framing.
    body: Vec<u8>,
    /// Where in `body` the content lies, which is all of it unless the body came in chunks.
    content: Vec<Range<usize>>,
    /// The end of the connection is the end of this message.
    until_close: bool,
}

/// What a server does with a request.
#[derive(Debug)]
pub(crate) enum Reply {
    Answer(Message),
    /// An answer of which only these bytes leave; then the connection ends.
    Fragment(Vec<u8>),
    /// The connection ends without an answer.
    Close,
}

impl Message {
    /// A request of our own.
    pub(crate) fn request(method: &str, target: &str, headers: &[(&str, &str)], content: &[u8]) -> Self {
        Self::made(&format!("{method} {target} HTTP/1.1"), headers, content)
    }

    /// An answer of our own.
    pub(crate) fn answer(status: u16, headers: &[(&str, &str)], content: &[u8]) -> Self {
        Self::made(&format!("HTTP/1.1 {status} {}", reason(status)), headers, content)
    }

    fn made(first_line: &str, headers: &[(&str, &str)], content: &[u8]) -> Self {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("{first_line}\r\n{headers}content-length: {}\r\n\r\n", content.len());
        Self::whole(head.into_bytes(), content.to_vec())
    }

    /// As to HEAD: the head tells how long the content is, and none follows.
    pub(crate) fn without_content(mut self) -> Self {
        self.body.clear();
        self.content.clear();
        self
    }

    #[allow(clippy::single_range_in_vec_init)] // one range, by intent
    fn whole(head: Vec<u8>, body: Vec<u8>) -> Self {
        let content = vec![0..body.len()];
        Self { head, body, content, until_close: false }
    }

    /// The words of the first line: method, target, version or version, status, reason.
    fn first_line(&self) -> (&str, &str) {
        let line = self.head.split(|&byte| byte == b'\r').next().unwrap_or_default();
        let mut words = std::str::from_utf8(line).unwrap_or_default().split(' ');
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }

    pub(crate) fn method(&self) -> &str {
        self.first_line().0
    }

    /// Path and query as the client wrote them, without an origin in front.
    pub(crate) fn target(&self) -> &str {
        let target = self.first_line().1;
        match target.strip_prefix("http://") {
            Some(absolute) => absolute.find('/').map_or("/", |at| &absolute[at..]),
            None => target,
        }
    }

    pub(crate) fn status(&self) -> u16 {
        self.first_line().1.parse().unwrap_or(0)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let text = std::str::from_utf8(&self.head).ok()?;
        text.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn says(&self, header: &str, word: &str) -> bool {
        self.header(header).is_some_and(|value| value.to_ascii_lowercase().contains(word))
    }

    /// How many bytes the content has, framing left out.
    pub(crate) fn content_length(&self) -> usize {
        self.content.iter().map(Range::len).sum()
    }

    /// The content, framing left out.
    pub(crate) fn content(&self) -> Vec<u8> {
        self.content.iter().flat_map(|range| &self.body[range.clone()]).copied().collect()
    }

    /// Turns one bit of the content's middle byte; false when there is no content.
    pub(crate) fn flip_a_bit(&mut self) -> bool {
        let mut left = self.content_length() / 2;
        for range in self.content.clone() {
            if left < range.len() {
                self.body[range.start + left] ^= 1;
                return true;
            }
            left -= range.len();
        }
        false
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        [self.head.as_slice(), &self.body].concat()
    }

    /// Everything up to the middle of the content.
    pub(crate) fn first_half(&self) -> Vec<u8> {
        let mut bytes = self.head.clone();
        bytes.extend_from_slice(&self.body[..self.body.len() / 2]);
        bytes
    }
}

/// Serves a listener for ever; each connection is a task that ends with this future.
pub(crate) async fn serve<H, F>(listener: TcpListener, handle: H)
where
    H: Fn(Message) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // The end of a connection is nobody's concern, and its error says only that the other side went away.
        connections.spawn(converse(stream, handle.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn converse<H, F>(mut stream: TcpStream, handle: H) -> io::Result<()>
where
    H: Fn(Message) -> F + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    stream.set_nodelay(true)?;
    let mut unread = Vec::new();
    while let Some(head) = read_head(&mut stream, &mut unread).await? {
        let mut request = Message::whole(head, Vec::new());
        if request.says("expect", "100-continue") {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        read_body(&mut stream, &mut unread, &mut request, Framing::of_request).await?;
        let last = request.says("connection", "close");
        match handle(request).await {
            Reply::Close => return Ok(()),
            Reply::Fragment(bytes) => return stream.write_all(&bytes).await,
            Reply::Answer(answer) => {
                stream.write_all(&answer.bytes()).await?;
                if last || answer.until_close || answer.says("connection", "close") {
                    return stream.shutdown().await;
                }
            }
        }
    }
    Ok(())
}

/// Sends a request on a connection of its own and reads the answer.
pub(crate) async fn forward(authority: &str, request: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    // A server may refuse before it has read the body: then writing fails and the answer is there all the same.
    let written = stream.write_all(&request.bytes()).await;
    let mut unread = Vec::new();
    loop {
        let head = read_head(&mut stream, &mut unread).await?;
        let Some(head) = head else {
            written?;
            return Err(ErrorKind::UnexpectedEof.into());
        };
        let mut answer = Message::whole(head, Vec::new());
        if answer.status() / 100 == 1 {
            continue;
        }
        let to_head = request.method() == "HEAD";
        read_body(&mut stream, &mut unread, &mut answer, |answer| Framing::of_answer(answer, to_head)).await?;
        return Ok(answer);
    }
}

#[derive(Clone, Copy, Debug)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

impl Framing {
    fn of_request(request: &Message) -> Self {
        Self::declared(request).unwrap_or(Self::Length(0))
    }

    fn of_answer(answer: &Message, to_head: bool) -> Self {
        if to_head || matches!(answer.status(), 204 | 304) {
            return Self::Length(0);
        }
        Self::declared(answer).unwrap_or(Self::UntilClose)
    }

    fn declared(message: &Message) -> Option<Self> {
        if message.says("transfer-encoding", "chunked") {
            return Some(Self::Chunked);
        }
        message.header("content-length")?.parse().ok().map(Self::Length)
    }
}

/// The next head, or nothing when the peer has closed between two messages.
async fn read_head<S: AsyncRead + Unpin>(stream: &mut S, unread: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(end) = find(unread, b"\r\n\r\n") {
            return Ok(Some(unread.drain(..end + 4).collect()));
        }
        if unread.len() > LONGEST_HEAD {
            return Err(ErrorKind::InvalidData.into());
        }
        if stream.read_buf(unread).await? == 0 {
            return if unread.is_empty() { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
        }
    }
}

async fn read_body<S: AsyncRead + Unpin>(
    stream: &mut S,
    unread: &mut Vec<u8>,
    message: &mut Message,
    framing: impl Fn(&Message) -> Framing,
) -> io::Result<()> {
    match framing(message) {
        Framing::Length(length) => {
            fill(stream, unread, length).await?;
            *message = Message::whole(std::mem::take(&mut message.head), unread.drain(..length).collect());
        }
        Framing::UntilClose => {
            while stream.read_buf(unread).await? > 0 {}
            *message = Message::whole(std::mem::take(&mut message.head), std::mem::take(unread));
            message.until_close = true;
        }
        Framing::Chunked => {
            message.content.clear();
            read_chunks(stream, unread, message).await?;
        }
    }
    Ok(())
}

async fn read_chunks<S: AsyncRead + Unpin>(
    stream: &mut S,
    unread: &mut Vec<u8>,
    message: &mut Message,
) -> io::Result<()> {
    loop {
        let line = read_line(stream, unread).await?;
        let size = std::str::from_utf8(&line).ok().and_then(|line| line.split([';', '\r']).next());
        let size = size.and_then(|digits| usize::from_str_radix(digits.trim(), 16).ok());
        let size = size.ok_or(ErrorKind::InvalidData)?;
        message.body.extend_from_slice(&line);
        if size == 0 {
            // Trailers, if any, and the empty line.
            loop {
                let line = read_line(stream, unread).await?;
                message.body.extend_from_slice(&line);
                if line == b"\r\n" {
                    return Ok(());
                }
            }
        }
        fill(stream, unread, size + 2).await?;
        message.content.push(message.body.len()..message.body.len() + size);
        message.body.extend(unread.drain(..size + 2));
    }
}

async fn read_line<S: AsyncRead + Unpin>(stream: &mut S, unread: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    loop {
        if let Some(end) = find(unread, b"\r\n") {
            return Ok(unread.drain(..end + 2).collect());
        }
        fill(stream, unread, unread.len() + 1).await?;
    }
}

async fn fill<S: AsyncRead + Unpin>(stream: &mut S, unread: &mut Vec<u8>, length: usize) -> io::Result<()> {
    while unread.len() < length {
        if stream.read_buf(unread).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Status",
    }
}
