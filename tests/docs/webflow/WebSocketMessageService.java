package io.getlime.security.powerauth.lib.webflow.authentication.service.websocket;

import io.getlime.security.powerauth.lib.nextstep.model.enumeration.AuthResult;

public interface WebSocketMessageService {
    void notifyAuthorizationComplete(String operationId, AuthResult authResult);

    void sendRegistrationMessage(String operationHash, String sessionId, boolean registrationSucceeded);

    String lookupWebSocketSessionId(String operationHash);

    boolean registerWebSocketSession(String operationHash, String webSocketSessionId, String clientIpAddress);
}
