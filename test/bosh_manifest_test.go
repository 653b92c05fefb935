package test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// applyOps prints a manifest as JSON once ops files have replaced parts of it, as
// the bosh command does.
const applyOps = `
require 'json'
require 'yaml'

def replace(at, path, value)
  optional = false
  parts = path.delete_prefix('/').split('/')
  parts.each_with_index do |part, i|
    optional ||= part.end_with?('?')
    name, wanted = part.delete_suffix('?').split('=')
    key = name
    if wanted
      key = at.index { |item| item[name] == wanted }
      raise "#{path}: no #{part}" unless key || optional
      key ||= at.size
    else
      raise "#{path}: no #{part}" unless at.key?(key) || optional
    end
    if i == parts.size - 1
      at[key] = value
    else
      at = at[key] ||= wanted ? { name => wanted } : {}
    end
  end
end

manifest, *ops = ARGV.map { |file| YAML.safe_load(File.read(file)) }
ops.flatten(1).each do |op|
  raise "not a replace: #{op}" unless op.keys.sort == %w[path type value] && op['type'] == 'replace'
  replace(manifest, op['path'], op['value'])
end
print JSON.generate(manifest)
`

// deployment is what a manifest says.
type deployment struct {
	Releases       []struct{ Name string }
	InstanceGroups []struct {
		Name           string
		PersistentDisk string `json:"persistent_disk_type"`
		Jobs           []struct {
			Name, Release string
			Properties    struct{ Locker properties }
		}
	} `json:"instance_groups"`
	Variables []struct{ Name string }
}

var variable = regexp.MustCompile(`\(\(([^)]+)\)\)`)

// The manifest, with and without its ops files, names releases that it lists and
// variables that it makes or asks for, and its properties can be deployed.
func TestBoshManifests(t *testing.T) {
	need(t, "ruby")
	const manifest = "bosh/manifests/locker.yml"
	ops, err := filepath.Glob("bosh/manifests/ops/*.yml")
	if err != nil || len(ops) == 0 {
		t.Fatal(ops, err)
	}
	sets := [][]string{nil, ops}
	for _, one := range ops {
		sets = append(sets, []string{one})
	}
	for _, set := range sets {
		t.Run(fmt.Sprint(set), func(t *testing.T) {
			files := append([]string{manifest}, set...)
			text := command(t, ".", "ruby", append([]string{"-e", applyOps}, files...)...)
			var d deployment
			if err := json.Unmarshal([]byte(text), &d); err != nil {
				t.Fatal(err)
			}
			asked := command(t, ".", "cat", files...)
			for _, v := range variable.FindAllStringSubmatch(text, -1) {
				made := slices.ContainsFunc(d.Variables, func(known struct{ Name string }) bool { return known.Name == v[1] })
				if !made && !strings.Contains(asked, "-v "+v[1]+"=") && !strings.Contains(asked, "--var-file "+v[1]+"=") {
					t.Errorf("nobody makes ((%s)), or is asked for it", v[1])
				}
			}
			wantDeployable(t, d)
		})
	}
}

func wantDeployable(t *testing.T, d deployment) {
	t.Helper()
	if len(d.InstanceGroups) != 1 || d.InstanceGroups[0].PersistentDisk == "" {
		t.Fatalf("%+v", d)
	}
	found := false
	for _, job := range d.InstanceGroups[0].Jobs {
		if !slices.ContainsFunc(d.Releases, func(r struct{ Name string }) bool { return r.Name == job.Release }) {
			t.Errorf("the release of the job %s is not listed", job.Name)
		}
		if job.Name != "locker" {
			continue
		}
		found = true
		given := job.Properties.Locker
		wantDeclared(t, "locker", given)
		if given["tls"] != "((locker-tls))" {
			t.Errorf("tls is %v", given["tls"])
		}
		given["tls"] = properties{"certificate": "CERT", "private_key": "KEY", "ca": "CA"}
		if files, refused := render(t, given); refused != "" || bpmProcess(t, files).Env["AUTH_PASS"] != "((locker-password))" {
			t.Errorf("the job's properties: %s", refused)
		}
	}
	if !found {
		t.Error("no job locker")
	}
}

// wantDeclared wants each property to be one that the job's spec knows: a director
// passes over the others.
func wantDeclared(t *testing.T, path string, given map[string]any) {
	t.Helper()
	var spec jobSpec
	unyaml(t, lockertest.Read(t, "bosh/jobs/locker/spec"), &spec)
	for name, value := range given {
		name = path + "." + name
		if _, ok := spec.Properties[name]; ok {
			continue
		}
		if inner, ok := value.(map[string]any); ok {
			wantDeclared(t, name, inner)
		} else {
			t.Errorf("the job has no property %s", name)
		}
	}
}
