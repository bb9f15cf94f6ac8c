use proptest::prelude::*;

use super::*;

const REALM: &str = "example.com";
const NOW_S: u32 = 1_800_000_000;

/// RFC 7616 section 3.9.1: "The username for this document is "Mufasa" and the password is
/// "Circle of Life"." HA1 is of that.
#[test]
fn the_examples_of_rfc_7616_section_3_9_1_are_reproduced() {
    let cases = [
        (
            "3d78807defe7de2157e2b0b6573a855f",
            "MD5",
            "8ca523f5e9506fed4657c9700eebdbec",
        ),
        (
            "7987c64c30e25f1b74be53f966b49b90f2808aa92faf9a00262392d7b4794232",
            "SHA-256",
            "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
        ),
    ];
    for (ha1, algorithm, wanted) in cases {
        let line = format!("Mufasa:http-auth@example.org:{ha1}");
        let users = Users::parse(line.as_bytes(), "http-auth@example.org").unwrap();
        let value = format!(
            "Digest username=\"Mufasa\", realm=\"http-auth@example.org\", uri=\"/dir/index.html\", \
             algorithm={algorithm}, nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", \
             nc=00000001, cnonce=\"f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ\", qop=auth, \
             response=\"{wanted}\", opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\""
        );
        let credentials = Credentials::parse(value.as_bytes(), b"http-auth@example.org");
        let credentials = credentials.unwrap().unwrap();
        let ha1 = users.ha1(b"Mufasa", credentials.algorithm).unwrap();
        assert_eq!(
            response(ha1, b"GET", &credentials)
                .hex(credentials.algorithm)
                .as_bytes(),
            wanted.as_bytes()
        );
    }
}

/// RFC 7616 section 3.9.2, with the response of its erratum 4897: the RFC's own figure was made
/// with a SHA-512 cut short, which is another algorithm.
#[test]
fn the_example_of_rfc_7616_section_3_9_2_is_reproduced_as_corrected() {
    let wanted = "3798d4131c277846293534c3edc11bd8a5e4cdcbff78b05db9d95eeb1cec68a5";
    let name = "J\u{e4}s\u{f8}n Doe";
    let ha1 =
        Algorithm::Sha512T256.hash(&[name.as_bytes(), b":api@example.org:", b"Secret, or not?"]);
    let ha1 = String::from_utf8_lossy(ha1.hex(Algorithm::Sha512T256).as_bytes()).into_owned();
    let line = format!("{name}:api@example.org:{ha1}:SHA-512-256");
    let users = Users::parse(line.as_bytes(), "api@example.org").unwrap();
    let value = format!(
        "Digest username=\"{name}\", realm=\"api@example.org\", uri=\"/doe.json\", \
         algorithm=SHA-512-256, nonce=\"5TsQWLVdgBdmrQ0XsxbDODV+57QdFR34I9HAbC/RVvkK\", \
         nc=00000001, cnonce=\"NTg6RKcb9boFIAS3KrFK9BGeh+iDa/sm6jUMp2wds69v\", qop=auth, response=\"{wanted}\""
    );
    let credentials = Credentials::parse(value.as_bytes(), b"api@example.org")
        .unwrap()
        .unwrap();
    let ha1 = users.ha1(name.as_bytes(), Algorithm::Sha512T256).unwrap();
    assert_eq!(
        response(ha1, b"GET", &credentials)
            .hex(credentials.algorithm)
            .as_bytes(),
        wanted.as_bytes()
    );
}

#[test]
fn a_right_answer_is_valid_once_for_each_count() {
    let mut digest = digest();
    let nonce = issue(&digest, NOW_S);
    let mut verdict = |nc, password| {
        let value = answer(&nonce, nc, "alice", password);
        verify(&mut digest, &value, NOW_S + 1)
    };
    assert_eq!(verdict(1, "secret"), Verdict::Valid);
    assert_eq!(verdict(1, "secret"), Verdict::Replayed);
    assert_eq!(verdict(2, "guess"), Verdict::Wrong);
    assert_eq!(verdict(2, "secret"), Verdict::Valid);
    assert_eq!(verdict(1, "secret"), Verdict::Replayed);
}

#[test]
fn a_user_who_does_not_exist_is_wrong_like_a_password() {
    let mut digest = digest();
    let nonce = issue(&digest, NOW_S);
    for user in ["mallory", ""] {
        let value = answer(&nonce, 1, user, "secret");
        assert_eq!(verify(&mut digest, &value, NOW_S), Verdict::Wrong);
    }
}

/// RFC 7616 section 3.3: stale is for "a request for which the nonce is invalid" and whose answer
/// is right all the same.
#[test]
fn a_right_answer_to_an_old_or_unknown_nonce_is_stale_and_a_wrong_one_wrong() {
    let mut digest = digest();
    let nonce = issue(&digest, NOW_S);
    let right = answer(&nonce, 1, "alice", "secret");
    let wrong = answer(&nonce, 1, "alice", "guess");
    assert_eq!(verify(&mut digest, &wrong, NOW_S + 301), Verdict::Wrong);
    assert_eq!(verify(&mut digest, &right, NOW_S + 301), Verdict::Stale);
    assert_eq!(verify(&mut digest, &right, NOW_S + 300), Verdict::Valid);
    for forged in ["", "x", &"A".repeat(24), &"A".repeat(200)] {
        let value = answer(forged, 1, "alice", "secret");
        assert_eq!(verify(&mut digest, &value, NOW_S), Verdict::Stale);
    }
}

#[test]
fn another_concentrator_with_the_key_accepts_a_nonce_and_one_without_does_not() {
    let nonce = issue(&digest(), NOW_S);
    let value = answer(&nonce, 1, "alice", "secret");
    let with = |keys: Keys| {
        let mut other = Digest::new(REALM.into(), users(), &keys, LIFETIME, NOW_S - 100);
        verify(&mut other, &value, NOW_S + 1)
    };
    assert_eq!(with(Keys::new([1; 32], None)), Verdict::Valid);
    assert_eq!(with(Keys::new([2; 32], Some([1; 32]))), Verdict::Valid);
    assert_eq!(with(Keys::new([2; 32], None)), Verdict::Stale);
}

#[test]
fn what_was_issued_before_a_start_is_stale() {
    let nonce = issue(&digest(), NOW_S);
    let value = answer(&nonce, 1, "alice", "secret");
    let keys = Keys::new([1; 32], None);
    let mut restarted = Digest::new(REALM.into(), users(), &keys, LIFETIME, NOW_S + 1);
    assert_eq!(verify(&mut restarted, &value, NOW_S + 1), Verdict::Stale);
}

#[test]
fn a_nonce_of_another_realm_is_not_ours() {
    let keys = Keys::new([1; 32], None);
    let other = Users::parse(b"x:other.net:00000000000000000000000000000000", "other.net");
    let other = Digest::new(
        "other.net".into(),
        other.unwrap(),
        &keys,
        LIFETIME,
        NOW_S - 100,
    );
    let value = answer(&issue(&other, NOW_S), 1, "alice", "secret");
    assert_eq!(verify(&mut digest(), &value, NOW_S), Verdict::Stale);
}

#[test]
fn other_users_take_their_place_at_once() {
    let mut digest = digest();
    let nonce = issue(&digest, NOW_S);
    let new = Users::parse(line("bob", "new").as_bytes(), REALM).unwrap();
    let old = digest.replace_users(new);
    assert_eq!(old.len(), 1);
    let value = answer(&nonce, 1, "alice", "secret");
    assert_eq!(verify(&mut digest, &value, NOW_S), Verdict::Wrong);
    let value = answer(&nonce, 1, "bob", "new");
    assert_eq!(verify(&mut digest, &value, NOW_S), Verdict::Valid);
}

/// RFC 8760 section 2.3: "the UAS … MUST … the topmost … most preferred".
#[test]
fn challenges_name_what_all_users_have_the_strongest_first() {
    let md5 = line("alice", "secret");
    let sha256 = format!("alice:{REALM}:{}", "a".repeat(64));
    let sha512 = format!("alice:{REALM}:{}:SHA-512-256", "b".repeat(64));
    let all = Users::parse(
        [md5.as_str(), &sha256, &sha512].join("\n").as_bytes(),
        REALM,
    );
    let keys = Keys::new([1; 32], None);
    let digest = Digest::new(REALM.into(), all.unwrap(), &keys, LIFETIME, NOW_S);
    let challenges: Vec<String> = digest.challenges(7, true, NOW_S).collect();
    let nonce = issue(&digest, NOW_S);
    let named = ["SHA-512-256", "SHA-256", "MD5"].map(|name| {
        format!(
            "Digest realm=\"example.com\", nonce=\"{nonce}\", algorithm={name}, qop=\"auth\", stale=true"
        )
    });
    assert_eq!(challenges, named);
    let some = [md5.as_str(), &sha256, &line("bob", "x")].join("\n");
    let some = Users::parse(some.as_bytes(), REALM).unwrap();
    assert_eq!(some.offered().collect::<Vec<_>>(), [Algorithm::Md5]);
}

#[test]
fn each_bad_line_of_a_users_file_is_named() {
    let good = line("alice", "secret");
    let cases = [
        ("alice", 2, UsersFault::Fields),
        ("bob:example.com", 2, UsersFault::Fields),
        ("bob:example.com:00:MD5:more", 2, UsersFault::Fields),
        (
            ":example.com:00000000000000000000000000000000",
            2,
            UsersFault::User,
        ),
        (
            "b\x01b:example.com:00000000000000000000000000000000",
            2,
            UsersFault::User,
        ),
        ("bob:example.com:1234", 2, UsersFault::Ha1),
        (
            "bob:example.com:0000000000000000000000000000000g",
            2,
            UsersFault::Ha1,
        ),
        (
            "bob:example.com:00000000000000000000000000000000:SHA-256",
            2,
            UsersFault::Algorithm,
        ),
        (
            "bob:example.com:00000000000000000000000000000000:MD4",
            2,
            UsersFault::Algorithm,
        ),
        (&good, 2, UsersFault::Twice),
    ];
    for (bad, line, fault) in cases {
        let text = format!("{good}\n{bad}\n");
        let error = Users::parse(text.as_bytes(), REALM).unwrap_err();
        assert_eq!(error, UsersError { line, fault }, "{bad}");
    }
    let whole = |text: String| Users::parse(text.as_bytes(), REALM).unwrap_err().fault;
    assert_eq!(whole(String::new()), UsersFault::Nobody);
    assert_eq!(whole(good.replace(REALM, "other")), UsersFault::Nobody);
    let split = format!("{good}\nbob:{REALM}:{}", "a".repeat(64));
    assert_eq!(whole(split), UsersFault::NoCommonAlgorithm);
}

#[test]
fn comments_line_ends_of_windows_and_other_realms_do_no_harm() {
    let text = format!(
        "# users\r\n\r\n{}\r\nbob:elsewhere:{}\r\n",
        line("alice", "secret"),
        "a".repeat(32)
    );
    let users = Users::parse(text.as_bytes(), REALM).unwrap();
    assert_eq!((users.len(), users.of_other_realms()), (1, 1));
    assert_eq!(format!("{users:?}"), "Users(1)", "no secret is printed");
}

#[test]
fn hostile_values_are_malformed_or_not_ours() {
    let long = format!(
        "Digest realm=\"example.com\", nonce=\"{}",
        "n".repeat(1 << 20)
    );
    let whole = answer("n", 1, "alice", "secret");
    let cut = |name: &str| {
        let start = whole.find(&format!("{name}=")).unwrap();
        let end = whole[start..]
            .find(',')
            .map_or(whole.len(), |end| start + end + 1);
        format!("{}{}", &whole[..start], &whole[end..])
    };
    let malformed = [
        ("Digest u", Malformed::Syntax),
        ("Digest =x", Malformed::Syntax),
        ("Digest realm=", Malformed::Syntax),
        ("Digest realm=\"example.com", Malformed::Syntax),
        ("Digest realm=\"example.com\\", Malformed::Syntax),
        (
            "Digest realm=\"example.com\" nonce=\"x\"",
            Malformed::Syntax,
        ),
        ("Digest realm=\"example.com\"x", Malformed::Syntax),
        ("Digest ", Malformed::Missing),
        ("Digest", Malformed::Missing),
        ("digest ,,, ,", Malformed::Missing),
        ("Digest username=\"alice\"", Malformed::Missing),
        ("Digest realm=\"example.com\"", Malformed::Qop),
        (&long, Malformed::Syntax),
        (&cut("username"), Malformed::Missing),
        (&cut("nonce"), Malformed::Missing),
        (&cut("uri"), Malformed::Missing),
        (&cut("response"), Malformed::Missing),
        (&cut("cnonce"), Malformed::Missing),
        (&cut("nc"), Malformed::Missing),
        (&cut("qop"), Malformed::Qop),
        (&whole.replace("qop=auth", "qop=auth-int"), Malformed::Qop),
        (&whole.replace("nc=00000001", "nc=1"), Malformed::Number),
        (
            &whole.replace("nc=00000001", "nc=0000000g"),
            Malformed::Number,
        ),
        (
            &whole.replace("nc=00000001", "nc=00000000"),
            Malformed::Number,
        ),
        (&whole.replace("=MD5", "=SHA-256"), Malformed::Number),
        (&format!("{whole}, realm=\"example.com\""), Malformed::Twice),
        (&format!("{whole}, REALM=\"other\""), Malformed::Twice),
        (
            &whole.replace("\"alice\"", &"a".repeat(1000)),
            Malformed::Syntax,
        ),
    ];
    for (value, fault) in malformed {
        let read = Credentials::parse(value.as_bytes(), REALM.as_bytes());
        assert_eq!(read, Err(fault), "{:.80}", value);
    }
    let others = [
        "",
        "Basic dTpw",
        "Digestion realm=\"example.com\"",
        "Digest realm=\"other.net\"",
        &whole.replace("=MD5", "=MD5-sess"),
    ];
    for value in others {
        let read = Credentials::parse(value.as_bytes(), REALM.as_bytes());
        assert_eq!(read, Ok(None), "{value}");
    }
}

#[test]
fn spelling_that_others_use_is_read() {
    let value = answer("n", 1, "alice", "secret");
    let read = |value: &str| {
        let read = Credentials::parse(value.as_bytes(), REALM.as_bytes());
        read.unwrap().map(|found| found.username.into_owned())
    };
    for value in [
        value.replace("Digest ", "DIGEST   "),
        value.replace(", ", ","),
        value.replace(", ", " ,\r\n\t"),
        value.replace("qop=auth", "qop=\"auth\""),
        value.replace("algorithm=MD5", "algorithm=\"md5\""),
        value.replace("algorithm=MD5, ", ""),
        value.replace("realm", "Realm"),
        value.replace(
            "nc=00000001",
            "nc=\"00000001\", auth-param=\"a, b\", opaque=\"\"",
        ),
        value.replace("\"alice\"", "\"al\\ice\""),
    ] {
        assert_eq!(
            read(&value).as_deref(),
            Some(b"alice".as_slice()),
            "{value}"
        );
    }
}

#[test]
fn of_several_realms_and_algorithms_ours_are_found() {
    let digest = digest();
    let ours = answer("n", 1, "alice", "secret");
    let other_realm = ours.replace(REALM, "other.net");
    let other_algorithm = ours
        .replace("=MD5", "=SHA-256")
        .replace("response=\"", "response=\"00000000000000000000000000000000");
    let find = |values: &[&str]| {
        let found = digest.find(values.iter().map(|value| value.as_bytes()));
        found.map(|found| found.map(|found| found.algorithm))
    };
    assert_eq!(
        find(&[&other_realm, "Digest u", &other_algorithm, &ours]),
        Ok(Some(Algorithm::Md5))
    );
    assert_eq!(find(&[&other_realm, &other_algorithm, "Basic x"]), Ok(None));
    assert_eq!(find(&[&other_realm, "Digest u"]), Err(Malformed::Syntax));
    assert_eq!(find(&[]), Ok(None));
}

#[test]
fn a_sip_user_is_compared_without_its_escapes() {
    for (user, name) in [
        ("alice", "alice"),
        ("%61lice", "alice"),
        ("a%20b", "a b"),
        ("", ""),
        ("100%25", "100%"),
    ] {
        assert!(is_user(user.as_bytes(), name.as_bytes()), "{user}");
    }
    for (user, name) in [
        ("alice", "Alice"),
        ("alice", "alic"),
        ("alic", "alice"),
        ("a%2", "a%2"),
        ("a%zz", "a%zz"),
        ("a%00", "a"),
    ] {
        assert!(!is_user(user.as_bytes(), name.as_bytes()), "{user}");
    }
}

proptest! {
    #[test]
    fn no_value_makes_the_parser_panic(value in any::<Vec<u8>>(), tail in "[\\x00-\\x7f]{0,200}") {
        let _read = Credentials::parse(&value, REALM.as_bytes());
        let value = format!("Digest realm=\"example.com\",{tail}");
        let _read = Credentials::parse(value.as_bytes(), REALM.as_bytes());
    }

    #[test]
    fn no_changed_nonce_is_fresh(at in 0_usize..24, with in "[A-Za-z0-9_-]") {
        let digest = digest();
        let nonce = issue(&digest, NOW_S);
        let mut changed = nonce.clone();
        changed.replace_range(at..=at, &with);
        prop_assume!(changed != nonce);
        prop_assert_eq!(digest.nonces.standing(changed.as_bytes(), NOW_S), Standing::Unknown);
    }
}

const LIFETIME: Duration = Duration::from_secs(300);

fn digest() -> Digest {
    let keys = Keys::new([1; 32], None);
    Digest::new(REALM.into(), users(), &keys, LIFETIME, NOW_S - 100)
}

fn users() -> Users {
    Users::parse(line("alice", "secret").as_bytes(), REALM).unwrap()
}

fn line(user: &str, password: &str) -> String {
    let ha1 = ha1(user, password);
    format!("{user}:{REALM}:{}", String::from_utf8_lossy(ha1.as_bytes()))
}

fn ha1(user: &str, password: &str) -> Hex {
    let parts = [user, ":", REALM, ":", password].map(str::as_bytes);
    md5(&parts)
}

fn md5(parts: &[&[u8]]) -> Hex {
    Algorithm::Md5.hash(parts).hex(Algorithm::Md5)
}

fn issue(digest: &Digest, now_s: u32) -> String {
    digest.nonces.issue(7, now_s)
}

/// What a phone makes of a challenge, for a REGISTER.
fn answer(nonce: &str, nc: u32, user: &str, password: &str) -> String {
    let ha1 = ha1(user, password);
    let ha2 = md5(&[b"REGISTER:sip:example.com"]);
    let count = format!(":{nonce}:{nc:08x}:0a4f113b:auth:");
    let response = md5(&[ha1.as_bytes(), count.as_bytes(), ha2.as_bytes()]);
    let response = String::from_utf8_lossy(response.as_bytes()).into_owned();
    format!(
        "Digest username=\"{user}\", realm=\"{REALM}\", nonce=\"{nonce}\", uri=\"sip:example.com\", \
         response=\"{response}\", algorithm=MD5, cnonce=\"0a4f113b\", qop=auth, nc={nc:08x}"
    )
}

fn verify(digest: &mut Digest, value: &str, now_s: u32) -> Verdict {
    let credentials = Credentials::parse(value.as_bytes(), REALM.as_bytes());
    digest.verify(b"REGISTER", &credentials.unwrap().unwrap(), now_s)
}
