//! HTTP/1.1 connections during a shutdown.

use super::*;

#[tokio::test(start_paused = true)]
async fn draining_closes_idle_connections_and_lets_requests_finish() {
    let shield = shield();
    let mut fresh = client(&shield);
    let mut idle = client(&shield);
    idle.write_all(GOOD.as_bytes()).await.expect("it is open");
    assert!(next(&mut idle).await.ends_with("GET /good "));
    let mut running = served(&shield, |_, _| async {
        sleep(Duration::from_secs(10)).await;
        ok(Made::from(Bytes::from_static(b"finished")))
    });
    running.write_all(GOOD.as_bytes()).await.expect("it is open");
    sleep(Duration::from_secs(1)).await;
    shield.shutdown.draining.cancel();
    let started = Instant::now();
    assert_eq!(rest(&mut fresh).await + &rest(&mut idle).await, "");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    let answer = rest(&mut running).await;
    assert!(answer.contains("connection: close") && answer.ends_with("finished"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_request_sent_as_draining_begins_is_answered_with_close() {
    let shield = shield();
    let mut idle = client(&shield);
    idle.write_all(GOOD.as_bytes()).await.expect("it is open");
    assert!(next(&mut idle).await.ends_with("GET /good "));
    shield.shutdown.draining.cancel();
    sleep(LAST_CALL / 2).await;
    idle.write_all(GOOD.as_bytes()).await.expect("it is open");
    let answer = rest(&mut idle).await;
    assert!(answer.contains("connection: close") && answer.ends_with("GET /good "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn requests_that_do_not_finish_in_time_are_aborted() {
    let shield = shield();
    let mut client = served(&shield, |_, _| std::future::pending());
    client.write_all(GOOD.as_bytes()).await.expect("it is open");
    sleep(Duration::from_secs(1)).await;
    shield.shutdown.draining.cancel();
    sleep(Duration::from_secs(1)).await;
    shield.shutdown.cutoff.cancel();
    let started = Instant::now();
    assert_eq!(rest(&mut client).await, "");
    assert!(started.elapsed() <= LAST_FRAME + Duration::from_millis(10), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_head_has_begun_is_served_while_draining() {
    let shield = shield();
    let mut client = client(&shield);
    client.write_all(b"GET /good HTTP/1.1\r\nhost: x\r\n").await.expect("it is open");
    sleep(Duration::from_secs(1)).await;
    shield.shutdown.draining.cancel();
    sleep(10 * LAST_CALL).await;
    client.write_all(b"\r\n").await.expect("it is open");
    let answer = rest(&mut client).await;
    assert!(answer.contains("connection: close") && answer.ends_with("GET /good "), "{answer}");
}
