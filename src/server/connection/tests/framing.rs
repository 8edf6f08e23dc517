//! Where requests and answers end, in both versions of HTTP/1, complete and in pieces, read and unread.

use super::*;

#[tokio::test(start_paused = true)]
async fn http10_requests_get_http10_answers() {
    let answer = exchange(b"GET /old HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.contains("connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("GET /old "), "{answer}");
    let shield = shield();
    let mut client = client(&shield);
    for _ in 0..2 {
        client.write_all(b"GET /old HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n").await.expect("it is kept alive");
        let answer = next(&mut client).await;
        assert!(answer.contains("connection: keep-alive\r\n") && answer.contains("content-length: 9\r\n"), "{answer}");
    }
    // HTTP/1.0 has no chunks: a stream ends with its connection.
    let mut client = served(&shield, |_, _| async {
        let (mut send, body) = Made::channel();
        tokio::spawn(async move { send.send_data(Bytes::from_static(b"data: a\n\n")).await });
        ok(body)
    });
    client.write_all(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await.expect("it is open");
    let answer = rest(&mut client).await;
    assert!(!answer.contains("chunked") && answer.contains("connection: close") && answer.ends_with("\r\n\r\ndata: a\n\n"));
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_head_has_a_length_and_no_body() {
    let answers = exchange(
        format!("HEAD /h HTTP/1.1\r\nhost: x\r\n\r\n{}", GOOD.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n")).as_bytes(),
    )
    .await;
    let (head, rest) = answers.split_once("\r\n\r\n").expect("an answer");
    assert!(head.contains("content-length: 8"), "{head}");
    assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with("GET /good "), "{rest}");
}

/// After an early answer the rest of the body is not read: it must not be taken for a request.
#[tokio::test(start_paused = true)]
async fn an_unread_body_ends_the_connection_after_its_answer() {
    let mut client = served(&shield(), |request, _| async move {
        drop(request);
        ok(Made::from(Bytes::from_static(b"early")))
    });
    let head = "POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 100000\r\n\r\n";
    client.write_all(format!("{head}{GOOD}").as_bytes()).await.expect("it is open");
    let answer = next(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("connection: close"), "{answer}");
    // The client may send for a while, so that a reset does not destroy the answer.
    client.write_all(&[b'x'; 50_000]).await.expect("it is read and forgotten");
    sleep(LINGER / 2).await;
    client.write_all(b"x").await.expect("it is read and forgotten");
    assert_eq!(rest(&mut client).await, "");
}

#[tokio::test(start_paused = true)]
async fn a_body_in_pieces_is_one_body() {
    let shield = shield();
    for head in ["content-length: 12", "transfer-encoding: chunked"] {
        let mut client = client(&shield);
        client.write_all(format!("POST /p HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n").as_bytes()).await.expect("it is open");
        let body =
            if head.starts_with('c') { "piece by one" } else { "5\r\npiece\r\n7;x=y\r\n by one\r\n0\r\ntrailer: x\r\n\r\n" };
        for piece in body.as_bytes().chunks(5) {
            sleep(Duration::from_secs(1)).await;
            client.write_all(piece).await.expect("it is open");
        }
        assert!(next(&mut client).await.ends_with("POST /p piece by one"), "{head}");
    }
}

/// The unsent rest has the same size each time, although the client reads.
#[tokio::test(start_paused = true)]
async fn a_slow_client_that_reads_equal_pieces_is_not_disconnected() {
    const PIECE: usize = 1 << 16;
    let mut client = served(&shield(), |_, _| async {
        let (mut send, body) = Made::channel();
        tokio::spawn(async move {
            for _ in 0..10 {
                send.send_data(vec![b'x'; PIECE].into()).await.expect("it is read");
            }
        });
        ok(body)
    });
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("it is open");
    let (mut got, mut some) = (0, vec![0; PIECE]);
    loop {
        sleep(MAX_BLOCKED / 2).await;
        let mut piece = 0;
        while piece < PIECE {
            match client.read(&mut some[piece..]).await.expect("it is not cut") {
                0 => {
                    assert!(got + piece > 10 * PIECE, "{got}");
                    return;
                }
                count => piece += count,
            }
        }
        got += piece;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_byte_by_byte_is_one_request() {
    let shield = shield();
    let mut client = client(&shield);
    for byte in b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc" {
        client.write_all(&[*byte]).await.expect("it is open");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(next(&mut client).await.ends_with("POST /slow abc"));
    client.write_all(GOOD.as_bytes()).await.expect("it is kept alive");
    assert!(next(&mut client).await.ends_with("GET /good "));
}

#[tokio::test(start_paused = true)]
async fn expect_continue_is_answered() {
    let shield = shield();
    let mut client = client(&shield);
    client
        .write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n")
        .await
        .expect("it is open");
    assert_eq!(next(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"abc").await.expect("it is open");
    assert!(next(&mut client).await.ends_with("POST / abc"));
}
