"""The database of mails: what is read from each kind of source, what is left out, and what a search finds."""

import mailbox
import os
import sqlite3
import threading
from email.message import EmailMessage

import pytest

from trainer.data import emails
from trainer.data.emails import Damaged, Inbox, Mail, create, digest, disguised, generate, parse, read
from trainer.errors import DataError

LUNCH = Mail("lunch", "at noon ?", date="2000-05-01", sender="ann@x.org", to=("bob@x.org",), message_id="a")
BUDGET = Mail(
    "budget for May",
    "the Budget is 1,517.",
    date="2000-05-02",
    sender="bob@x.org",
    cc=("ann@x.org",),
    message_id="b",
)
REPLY = Mail(
    "re: budget", "1517 it is", date="2000-05-03", sender="carl@x.org", to=("dan@x.org",), message_id="c"
)
INBOX = Inbox.of([LUNCH, BUDGET, REPLY], "three mails")


def ids(hits):
    return [hit.message_id for hit in hits]


# --- sources ---


def maildir(root, **mails):
    """A tree as CMU's: one mail in each file, directories by person and folder."""
    for name, raw in mails.items():
        path = root / "lay-k" / "inbox" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return root


CMU_MAIL = b"""Message-ID: <1.JavaMail.evans@thyme>
Date: Mon, 14 May 2001 16:39:00 -0700 (PDT)
From: phillip.allen@enron.com
To: tim.belden@enron.com, "John Smith" <JOHN@enron.com>
Cc: ann@enron.com
Subject: Forecast
Mime-Version: 1.0
Content-Type: text/plain; charset=us-ascii

Here is our forecast
"""


def test_a_mail_of_cmus_tree_is_read_with_its_time_in_utc(tmp_path):
    assert list(read(maildir(tmp_path, **{"1.": CMU_MAIL}))) == [
        Mail(
            subject="Forecast",
            body="Here is our forecast",
            date="2001-05-14 23:39:00",
            sender="phillip.allen@enron.com",
            to=("tim.belden@enron.com", "john@enron.com"),
            cc=("ann@enron.com",),
            message_id="<1.JavaMail.evans@thyme>",
            file_name="lay-k/inbox/1.",
        )
    ]


def test_a_tree_is_read_in_the_order_of_its_names(tmp_path):
    places = [f"{person}/{number}." for person in "hcafbged" for number in (2, 10, 1)]
    for place in places:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(CMU_MAIL)

    assert [mail.file_name for mail in read(tmp_path)] == sorted(places)


def test_what_cannot_be_read_in_a_tree_is_counted_and_waited_for_by_nobody(tmp_path):
    maildir(tmp_path, **{"1.": CMU_MAIL})
    os.mkfifo(tmp_path / "lay-k" / "inbox" / "2.")
    (tmp_path / "lay-k" / "inbox" / "3.").symlink_to("nowhere")
    (tmp_path / "lay-k" / "inbox" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "zipper-a").mkdir()
    mails = read(tmp_path)

    first = next(mails)
    (tmp_path / "zipper-a").rmdir()

    assert first.subject == "Forecast"
    assert list(mails) == [
        Damaged("lay-k/inbox/2.", "it is no regular file"),
        Damaged("lay-k/inbox/3.", "No such file or directory"),
        Damaged(str(tmp_path / "zipper-a"), "No such file or directory"),
    ]


def test_an_mbox_is_read(tmp_path):
    box = mailbox.mbox(tmp_path / "inbox.mbox")
    for subject in ("one", "two"):
        message = EmailMessage()
        message["Subject"] = subject
        message.set_content("text")
        box.add(message)
    box.close()

    assert [mail.subject for mail in read(tmp_path / "inbox.mbox")] == ["one", "two"]


def test_a_html_mail_is_read_without_its_tags():
    raw = b"Subject: a\nContent-Type: text/html\n\n<style>p {}</style><p>fish &amp; chips</p><br>now"

    assert parse(raw, "x").body.split() == ["fish", "&", "chips", "now"]


def test_the_plain_part_of_a_mail_is_taken_and_attachments_are_not():
    message = EmailMessage()
    message["Subject"] = "a"
    message.set_content("plain")
    message.add_alternative("<b>marked up</b>", subtype="html")
    message.add_attachment("attached", filename="a.txt")

    assert parse(message.as_bytes(), "x").body == "plain"


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"Subject: a\nContent-Type: text/plain; charset=utf-8\n\ncaf\xc3\xa9", "café"),
        (b"Subject: a\nContent-Type: text/plain; charset=utf-8\n\ncaf\xe9", "café"),
        (b"Subject: a\nContent-Type: text/plain; charset=klingon\n\ncaf\xe9", "café"),
        (b"Subject: a\n\nnul\x00 in it", "nul in it"),
    ],
)
def test_a_body_is_decoded_whatever_it_says_of_itself(raw, body):
    assert parse(raw, "x").body == body


@pytest.mark.parametrize(
    "subject", [b"=?klingon?q?a?=", b"=?utf-8?b?!!?=", b"=?utf-8?b?a?=", b"caf\xe9", b"a\n b"]
)
def test_an_odd_subject_damages_no_mail(subject):
    assert isinstance(parse(b"From: a@x.org\nSubject: " + subject + b"\n\nbody", "x"), Mail)


@pytest.mark.parametrize(
    ("date", "kept"),
    [
        ("Tue, 2 May 2000 01:00:00 +0200", "2000-05-01 23:00:00"),
        ("2000-05-01T23:00:00Z", "2000-05-01 23:00:00"),
        ("2000-05-01", "2000-05-01"),
        ("yesterday", ""),
        ("2000-13-45", ""),
        ("0001-01-01T00:00:00+14:00", ""),
        ("", ""),
    ],
)
def test_dates_become_text_that_sorts_by_time(date, kept):
    assert parse(f"Date: {date}\nSubject: a\n\nbody".encode(), "x").date == kept


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'{"subject": "no body"}',
        b'{"body": 1}',
        b'{"body": "a", "date": 5}',
        b'\xff{"body": "a"}',
        b"9" * 5000,
    ],
)
def test_a_damaged_line_is_named_and_the_lines_around_it_are_read(tmp_path, line):
    path = tmp_path / "mails.jsonl"
    path.write_bytes(b'{"body": "one"}\n' + line + b'\n\n{"body": "two"}\n')

    first, damaged, second = read(path)

    assert (first.body, second.body) == ("one", "two")
    assert isinstance(damaged, Damaged)
    assert damaged.where == "line 2"


@pytest.mark.parametrize(
    "raw",
    [
        b"From: " + b"(" * 5000 + b"\n\nbody",
        b"".join(
            b"Subject: deep\nContent-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n)
            for n in range(2000)
        ),
    ],
    ids=["comments", "parts"],
)
def test_a_mail_that_is_nested_too_deeply_is_damaged_and_ends_nothing(raw):
    assert parse(raw, "m").where == "m"


def test_a_name_that_is_not_utf8_is_kept_as_far_as_it_is_text(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9")).write_bytes(CMU_MAIL)

    created = create(read(tmp_path), tmp_path / "made.db")

    assert created.n_kept == 1


def test_a_megabyte_of_tags_that_never_end_is_read():
    """Where each of them is looked up to the end of the mail, this takes 20 minutes."""
    mail = parse(b"Subject: s\nContent-Type: text/html\n\nnoon<br>" + b"<script " * 130_000, "m")

    assert mail.body.startswith("noon")


def test_half_a_surrogate_pair_in_a_mail_is_replaced(tmp_path):
    (tmp_path / "mails.jsonl").write_text('{"body": "a \\ud800 b"}\n')

    assert [mail.body for mail in Inbox.of(read(tmp_path / "mails.jsonl"), "x")] == ["a ? b"]


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="absent"):
        read(tmp_path / "absent")


# --- making a database ---


def test_what_was_made_and_what_was_left_out_is_said(tmp_path):
    seen = []

    made = create([LUNCH, Damaged("line 2", "it is not JSON"), LUNCH, BUDGET], tmp_path / "a.db", seen.append)

    assert (made.n_read, made.n_kept, made.n_duplicates, made.n_damaged) == (4, 2, 1, 1)
    assert (
        made.in_words()
        == "2 mails of 4; 1 was there already, 1 is damaged and left out (line 2: it is not JSON)"
    )
    assert seen == [made]


def test_progress_is_told_while_mails_pass_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(emails, "PROGRESS_EVERY", 2)
    passed, told = [], []

    def mails():
        for number in range(5):
            passed.append(number)
            yield Mail(f"mail {number}", "", message_id=str(number))

    create(mails(), tmp_path / "a.db", lambda made: told.append((made.n_read, len(passed))))

    assert told == [(2, 2), (4, 4), (5, 5)]


def test_a_mail_without_an_id_gets_the_same_one_each_time():
    nameless = Mail("lunch", "at noon ?")

    assert [mail.message_id for mail in Inbox.of([nameless, nameless, Mail("lunch", "at one ?")], "x")] == [
        digest(nameless),
        digest(Mail("lunch", "at one ?")),
    ]


def test_the_same_source_makes_the_same_database(tmp_path):
    maildir(tmp_path / "tree", **{"1.": CMU_MAIL, "2.": b"Subject: a\n\nb", "3.": b"\x00"})

    for name in ("one.db", "two.db"):
        create(read(tmp_path / "tree"), tmp_path / name)

    assert (tmp_path / "one.db").read_bytes() == (tmp_path / "two.db").read_bytes()


def test_a_making_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.db"
    create([LUNCH], path)

    def failing():
        yield BUDGET
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        create(failing(), path)

    assert list(Inbox.open(path)) == [LUNCH]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.db"]


def test_a_source_without_mails_makes_no_database(tmp_path):
    with pytest.raises(DataError, match="line 1: it is not JSON"):
        create([Damaged("line 1", "it is not JSON")], tmp_path / "a.db")

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_of_mails_is_refused(tmp_path):
    (tmp_path / "text.db").write_text("no database")
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (a)").connection.close()

    for name in ("text.db", "other.db", "absent.db"):
        with pytest.raises(DataError, match=r"trainer data emails SOURCE -o"):
            Inbox.open(tmp_path / name)
    assert not (tmp_path / "absent.db").exists()


def test_a_mail_comes_back_as_it_went_in(tmp_path):
    create([LUNCH, BUDGET, REPLY], tmp_path / "a.db")

    inbox = Inbox.open(tmp_path / "a.db")

    assert list(inbox) == [LUNCH, BUDGET, REPLY]
    assert (len(inbox), "a" in inbox, "z" in inbox, inbox.mail("z")) == (3, True, False, None)


# --- searching ---


def test_a_search_finds_the_mails_that_have_all_keywords_newest_first():
    assert ids(INBOX.search(["budget"])) == ["c", "b"]
    assert ids(INBOX.search(["budget", "1517"])) == ["c"]
    assert ids(INBOX.search(["budget", "noon"])) == []


def test_a_keyword_of_several_words_is_a_phrase_and_endings_are_one():
    assert ids(INBOX.search(["for may"])) == ["b"]
    assert ids(INBOX.search(["may for"])) == []
    assert ids(INBOX.search(["budgets"])) == ["c", "b"]


@pytest.mark.parametrize(
    "odd", ['"', "a AND", "NEAR(", "body:x", "*", "", "-", "x' OR 1=1 --", "\x00", "\ud800", 'x"y', "x\ud800"]
)
def test_no_keyword_is_a_mistake_of_syntax(odd):
    assert ids(INBOX.search([odd])) == []
    assert INBOX.search([]) == []


def test_a_search_keeps_to_addresses_and_days():
    def found(**only):
        return ids(INBOX.search(["budget"], **only))

    assert found(owner="ANN@x.org") == ["b"]
    assert found(from_addr="carl@x.org") == ["c"]
    assert found(to_addr="ann@x.org") == ["b"]
    assert found(sent_after="2000-05-03") == ["c"]
    assert found(sent_before="2000-05-03") == ["b"]
    assert found(max_results=1) == ["c"]


def test_a_snippet_shows_where_the_words_are():
    far = Mail("notes", "one " * 100 + "needle " + "two " * 100, message_id="a")

    (hit,) = Inbox.of([far], "x").search(["needle"], snippet_words=5)

    assert "needle" in hit.snippet
    assert len(hit.snippet.split()) == 5


def test_having_finds_what_search_finds():
    assert sorted(INBOX.having(["budget"], 9)) == ["b", "c"]
    assert len(INBOX.having(["budget"], 1)) == 1


def test_threads_may_search_at_once():
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(ids(INBOX.search(["lunch"])) for _ in range(50)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [["a"]] * 200


# --- made up, and in disguise ---


def test_a_made_up_inbox_is_the_seeds():
    assert generate(20, seed=1) == generate(20, seed=1)
    assert generate(20, seed=1) != generate(20, seed=2)
    assert len(Inbox.of(generate(300, seed=1), "x")) == 300


def test_a_disguised_mail_keeps_its_words_and_nothing_that_could_be_an_answer():
    mails = [
        Mail("meter 1517", "deal 48213 on 12 / 14", date="2000-01-01", message_id="enron1-0004"),
        Mail("meter 9999", "no number", date="2001-01-01", message_id="no number"),
    ]

    one, two = disguised(mails, seed=3)

    assert one.subject.startswith("meter ")
    assert one.body.startswith("deal ")
    assert one.body.endswith(" on 12 / 14")
    assert (len(one.subject), len(one.body)) == (len("meter 1517"), len("deal 48213 on 12 / 14"))
    assert one.subject != "meter 1517"
    assert one.body != "deal 48213 on 12 / 14"
    assert one.message_id.startswith("enron1-")
    assert one.message_id != "enron1-0004"
    assert two.message_id.startswith("no number-")
    assert two.body == "no number"
    assert {mail.date for mail in disguised(mails * 20, seed=3)} == {"2000-01-01", "2001-01-01"}
    assert disguised(mails, seed=3) == [one, two]
    assert disguised(mails, seed=4) != [one, two]
