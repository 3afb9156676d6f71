"""The table of version 1, as an import from its SQLite file leaves it in the database of version 2."""

from sqlalchemy import Boolean, Column, Index, Integer, MetaData, Table, Text, func

legacy_metadata = MetaData()

birthday_messages = Table(
    "birthday_messages",
    legacy_metadata,
    Column("id", Integer, primary_key=True),
    # Version 1 declared a foreign key here, but SQLite never checked it: rows outlived their contacts.
    Column("contact_id", Integer),
    Column("contact_name", Text, nullable=False),
    Column("message_text", Text, nullable=False),
    Column("sent_at", Text, nullable=False),
    Column("is_late", Boolean),
    Column("days_late", Integer),
    Column("response_received", Boolean),
    Column("response_text", Text),
    Column("response_date", Text),
    Column("script_mode", Text),
)
Index("idx_birthday_messages_sent_at", birthday_messages.c.sent_at)
Index("idx_birthday_messages_contact_name", birthday_messages.c.contact_name)
Index(
    "idx_no_dup_msg",
    birthday_messages.c.contact_id,
    func.substr(birthday_messages.c.sent_at, 1, 10),
    birthday_messages.c.message_text,
    unique=True,
)
