// Cloud stubs: as much of Microsoft Entra ID and of Azure Resource Manager as a service principal's login needs.
package main

import (
	"net/http"
	"strings"
	"time"
)

const subscription = "00000000-0000-4000-8000-000000000001"

func (s *server) serveCloud(a *answer, r *http.Request) {
	base := s.scheme + "://" + r.Host
	path := r.URL.Path
	registry, _, _ := strings.Cut(s.loginServer, ".")
	id := "/subscriptions/" + subscription + "/resourceGroups/simulated/providers/Microsoft.ContainerRegistry/registries/" + registry
	tenant := strings.SplitN(strings.TrimPrefix(path, "/"), "/", 2)[0]
	switch {
	case strings.HasSuffix(path, "/oauth2/v2.0/token") || strings.HasSuffix(path, "/oauth2/token"):
		s.cloudToken(a, r, tenant)
	case strings.HasSuffix(path, "/.well-known/openid-configuration"):
		writeJSON(a, http.StatusOK, map[string]any{
			"token_endpoint": base + "/" + tenant + "/oauth2/v2.0/token", "authorization_endpoint": base + "/" + tenant + "/oauth2/v2.0/authorize",
			"device_authorization_endpoint": base + "/" + tenant + "/oauth2/v2.0/devicecode", "jwks_uri": base + "/" + tenant + "/discovery/v2.0/keys",
			"issuer": base + "/" + s.tenant + "/v2.0", "token_endpoint_auth_methods_supported": []string{"client_secret_post", "client_secret_basic"},
			"response_types_supported": []string{"code", "id_token"}, "subject_types_supported": []string{"pairwise"},
		})
	case strings.HasSuffix(path, "/discovery/instance"):
		writeJSON(a, http.StatusOK, map[string]any{
			"tenant_discovery_endpoint": base + "/" + s.tenant + "/v2.0/.well-known/openid-configuration", "api-version": "1.1",
			"metadata": []map[string]any{{"preferred_network": r.Host, "preferred_cache": r.Host, "aliases": []string{r.Host}}},
		})
	case strings.HasSuffix(path, "/discovery/v2.0/keys"):
		writeJSON(a, http.StatusOK, s.tokens.keys())
	case path == "/metadata/endpoints":
		writeJSON(a, http.StatusOK, []map[string]any{{
			"name": "simulated", "resourceManager": base, "authentication": map[string]any{"loginEndpoint": base, "audiences": []string{base}, "tenant": s.tenant},
			"suffixes": map[string]string{"acrLoginServer": strings.TrimPrefix(s.loginServer, registry+".")},
		}})
	default:
		s.serveResources(a, r, registry, id)
	}
}

// serveResources is Azure Resource Manager: the registry as a resource.
func (s *server) serveResources(a *answer, r *http.Request, registry, id string) {
	token, good := s.tokens.verify(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	path := r.URL.Path
	switch {
	case !good || token.kind != "aad":
		a.Header().Set("Www-Authenticate", `Bearer authorization_uri="`+s.scheme+"://"+r.Host+"/"+s.tenant+`", error="invalid_token", error_description="The access token is missing or invalid."`)
		writeJSON(a, http.StatusUnauthorized, map[string]any{"error": map[string]string{"code": "AuthenticationFailed", "message": "Authentication failed."}})
	case path == "/tenants":
		writeJSON(a, http.StatusOK, map[string]any{"value": []map[string]string{{"id": "/tenants/" + s.tenant, "tenantId": s.tenant}}})
	case path == "/subscriptions":
		writeJSON(a, http.StatusOK, map[string]any{"value": []map[string]string{{"id": "/subscriptions/" + subscription, "subscriptionId": subscription,
			"tenantId": s.tenant, "displayName": "simulated", "state": "Enabled"}}})
	case path == "/subscriptions/"+subscription+"/resources":
		writeJSON(a, http.StatusOK, map[string]any{"value": []map[string]any{{"id": id, "name": registry, "type": "Microsoft.ContainerRegistry/registries", "location": s.region}}})
	case strings.EqualFold(path, id):
		soft := "disabled"
		if s.settings.get().SoftDelete {
			soft = "enabled"
		}
		writeJSON(a, http.StatusOK, map[string]any{
			"id": id, "name": registry, "type": "Microsoft.ContainerRegistry/registries", "location": s.region,
			"sku": map[string]string{"name": "Premium", "tier": "Premium"},
			"properties": map[string]any{"loginServer": s.loginServer, "provisioningState": "Succeeded", "adminUserEnabled": true,
				"anonymousPullEnabled": s.settings.get().Anonymous == "on",
				"policies":             map[string]any{"softDeletePolicy": map[string]any{"status": soft, "retentionDays": 7}}},
		})
	default:
		writeJSON(a, http.StatusNotFound, map[string]any{"error": map[string]string{"code": "ResourceNotFound", "message": "The Resource '" + path + "' was not found."}})
	}
}

func (s *server) cloudToken(a *answer, r *http.Request, tenant string) {
	if err := r.ParseForm(); err != nil || r.Method != http.MethodPost {
		writeJSON(a, http.StatusBadRequest, map[string]string{"error": "invalid_request", "error_description": "AADSTS900144: POST a form."})
		return
	}
	form := r.PostForm
	if form.Get("grant_type") != "client_credentials" {
		writeJSON(a, http.StatusBadRequest, map[string]string{"error": "unsupported_grant_type", "error_description": "AADSTS70003: The app requested an unsupported grant type '" + form.Get("grant_type") + "'."})
		return
	}
	client := form.Get("client_id")
	kind, good := s.accounts.login(client, form.Get("client_secret"))
	if !good || kind != kindPrincipal {
		writeJSON(a, http.StatusUnauthorized, map[string]string{"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."})
		return
	}
	a.entry.User = client
	audience := strings.TrimSuffix(form.Get("scope"), "/.default")
	if audience == "" {
		audience = form.Get("resource")
	}
	const lifetime = 24*time.Hour - time.Second
	writeJSON(a, http.StatusOK, map[string]any{"token_type": "Bearer", "expires_in": int(lifetime / time.Second), "ext_expires_in": int(lifetime / time.Second),
		"refresh_in": 43199, "access_token": s.tokens.cloud(client, tenant, audience, lifetime)})
}
