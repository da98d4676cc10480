//! Tables over rules, tenants, tenants and scores.
