package io.getlime.security.powerauth.lib.webflow.authentication.service.websocket;

import io.getlime.security.powerauth.lib.nextstep.model.enumeration.AuthResult;
import org.springframework.boot.autoconfigure.condition.ConditionalOnProperty;
import org.springframework.stereotype.Service;

/** In the place of the old endpoint: says what it is told. It fails for an operation called "broken". */
@Service
@ConditionalOnProperty(name = "powerauth.webflow.websockets.enabled", havingValue = "true")
public class WebSocketMessageServiceImpl implements WebSocketMessageService {
    @Override
    public void notifyAuthorizationComplete(String operationId, AuthResult authResult) {
        System.out.println("old " + operationId + " " + authResult);
        if (operationId.equals("broken")) {
            throw new IllegalStateException("the old endpoint fails");
        }
    }

    @Override
    public void sendRegistrationMessage(String operationHash, String sessionId, boolean registrationSucceeded) {
    }

    @Override
    public String lookupWebSocketSessionId(String operationHash) {
        return null;
    }

    @Override
    public boolean registerWebSocketSession(String operationHash, String webSocketSessionId, String clientIpAddress) {
        return true;
    }
}
