-- Keys between tables, and indexes: made after the rows.

ALTER TABLE creator_settings ADD FOREIGN KEY (company_id) REFERENCES companies;

ALTER TABLE users ADD FOREIGN KEY (company_id) REFERENCES companies,
                  ADD UNIQUE (company_id, email);

ALTER TABLE memberships ADD FOREIGN KEY (company_id) REFERENCES companies,
                        ADD FOREIGN KEY (user_id) REFERENCES users;
CREATE INDEX memberships_user ON memberships (user_id);

ALTER TABLE events ADD PRIMARY KEY (id),
                   ADD UNIQUE (whop_event_id),
                   ADD FOREIGN KEY (company_id) REFERENCES companies;
-- An index on created_at WHERE created_at > now() - … cannot be: an index's predicate must not depend
-- on the clock. A plain one serves the newest events and the purge of the oldest alike; the composite
-- one serves a tenant's queue and cannot serve a purge by time alone.
CREATE INDEX events_created_at ON events (created_at);
CREATE INDEX events_company_processed ON events (company_id, processed, created_at);

-- An event is purged by its age; an open case must neither hold it back nor go with it. The case
-- keeps what it repeats of the event and loses the pointer. The index is for the purge: without it
-- every deleted event reads all cases.
ALTER TABLE recovery_cases ADD FOREIGN KEY (company_id) REFERENCES companies,
                           ADD FOREIGN KEY (user_id) REFERENCES users,
                           ADD FOREIGN KEY (membership_id) REFERENCES memberships,
                           ADD FOREIGN KEY (caused_by) REFERENCES events ON DELETE SET NULL;
CREATE INDEX recovery_cases_caused_by ON recovery_cases (caused_by);
CREATE INDEX recovery_cases_user_company ON recovery_cases (user_id, company_id);
CREATE INDEX recovery_cases_membership ON recovery_cases (membership_id);
CREATE INDEX recovery_cases_company_status ON recovery_cases (company_id, status, first_failure_at)
    INCLUDE (user_id, membership_id, attempts);

ALTER TABLE recovery_actions ADD FOREIGN KEY (company_id) REFERENCES companies,
                             ADD FOREIGN KEY (case_id) REFERENCES recovery_cases;
CREATE INDEX recovery_actions_case ON recovery_actions (case_id, created_at);

ALTER TABLE data_exports ADD UNIQUE (request_id),
                         ADD FOREIGN KEY (company_id) REFERENCES companies,
                         ADD FOREIGN KEY (user_id) REFERENCES users;
CREATE INDEX data_exports_created_at ON data_exports (created_at);
CREATE INDEX data_exports_user ON data_exports (user_id);

ALTER TABLE consent_records ADD FOREIGN KEY (company_id) REFERENCES companies,
                            ADD FOREIGN KEY (user_id) REFERENCES users;
CREATE INDEX consent_records_revoked_at ON consent_records (revoked_at);
CREATE INDEX consent_records_user ON consent_records (user_id);

ALTER TABLE user_deletion_requests ADD FOREIGN KEY (company_id) REFERENCES companies,
                                   ADD FOREIGN KEY (user_id) REFERENCES users;
CREATE INDEX user_deletion_requests_user ON user_deletion_requests (user_id);

ALTER TABLE onboarding.sessions ADD FOREIGN KEY (company_id) REFERENCES companies,
                                ADD FOREIGN KEY (user_id) REFERENCES users;
CREATE INDEX sessions_last_activity_at ON onboarding.sessions (last_activity_at);
CREATE INDEX sessions_user ON onboarding.sessions (user_id);
