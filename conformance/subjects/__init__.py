"""One file a subject; its class is called SubjectUnderTest."""
