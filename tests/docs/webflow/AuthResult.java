package io.getlime.security.powerauth.lib.nextstep.model.enumeration;

public enum AuthResult { CONTINUE, FAILED, DONE }
