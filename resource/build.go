package resource

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
)

// This file reads the environment of a build for its id and its link.

// buildID names the build, the same in every step and every run of it. It
// reports whether the environment says which build it is; otherwise the id is
// random. Address and number alone do not name it: two Concourses that nobody
// gave an external URL have the same one, and count their builds alike.
func buildID(getenv func(string) string) (id string, known bool) {
	concourse, build := strings.TrimRight(withoutCredentials(getenv("ATC_EXTERNAL_URL")), "/"), getenv("BUILD_ID")
	if concourse == "" || build == "" {
		return rand.Text(), false
	}
	id = concourse + "/builds/" + url.PathEscape(build)
	more := url.Values{}
	for _, name := range []string{"BUILD_TEAM_NAME", "BUILD_PIPELINE_NAME", "BUILD_PIPELINE_INSTANCE_VARS", "BUILD_JOB_NAME", "BUILD_NAME"} {
		if value := getenv(name); value != "" {
			more.Set(name, value)
		}
	}
	if len(more) > 0 {
		id += "?" + more.Encode()
	}
	if CheckName("id", id) != nil {
		id = fmt.Sprintf("%x", sha256.Sum256([]byte(id)))
	}
	return id, true
}

// buildName returns what people call the build; builds of one job differ.
func buildName(getenv func(string) string) string {
	job := getenv("BUILD_JOB_NAME")
	if job == "" {
		return "build " + cmp.Or(getenv("BUILD_ID"), rand.Text())
	}
	name := getenv("BUILD_TEAM_NAME") + "/" + getenv("BUILD_PIPELINE_NAME") + "/"
	if vars := getenv("BUILD_PIPELINE_INSTANCE_VARS"); vars != "" {
		name += vars + "/"
	}
	name += job + " #" + getenv("BUILD_NAME")
	if CheckName("locked_by", name) != nil || checkNewName("locked_by", name) != nil {
		name = fmt.Sprintf("%x", sha256.Sum256([]byte(name)))
	}
	return name
}

// buildLink returns the URL of the build, "" when the environment has none.
func buildLink(getenv func(string) string) string {
	for _, link := range []string{getenv("BUILD_URL"), jobBuildLink(getenv), plainBuildLink(getenv)} {
		link = withoutCredentials(link)
		if link != "" && CheckLink(link) == nil {
			return link
		}
	}
	return ""
}

// withoutCredentials returns the address without its user and password, which
// nobody may see.
func withoutCredentials(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.User == nil {
		return address
	}
	u.User = nil
	return u.String()
}

// jobBuildLink puts together the address of a job's build, as Concourse does.
func jobBuildLink(getenv func(string) string) string {
	link := strings.TrimRight(getenv("ATC_EXTERNAL_URL"), "/")
	for _, part := range []string{"teams", "BUILD_TEAM_NAME", "pipelines", "BUILD_PIPELINE_NAME", "jobs", "BUILD_JOB_NAME", "builds", "BUILD_NAME"} {
		if strings.HasPrefix(part, "BUILD_") {
			part = getenv(part)
		}
		if part == "" {
			return ""
		}
		link += "/" + url.PathEscape(part)
	}
	vars := map[string]json.RawMessage{}
	if text := getenv("BUILD_PIPELINE_INSTANCE_VARS"); text != "" && json.Unmarshal([]byte(text), &vars) != nil {
		return ""
	}
	query := url.Values{}
	for name, value := range vars {
		query.Set("vars."+varRef(name), string(value))
	}
	if len(query) > 0 {
		link += "?" + query.Encode()
	}
	return link
}

// varRef quotes a variable's name where Concourse would take it for a path.
func varRef(name string) string {
	if strings.ContainsAny(name, ",.:/ ") {
		return `"` + name + `"`
	}
	return name
}

func plainBuildLink(getenv func(string) string) string {
	if getenv("BUILD_ID") == "" {
		return ""
	}
	return strings.TrimRight(getenv("ATC_EXTERNAL_URL"), "/") + "/builds/" + url.PathEscape(getenv("BUILD_ID"))
}
