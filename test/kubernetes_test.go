package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file does with the example for Kubernetes what can be done without a
// cluster: it runs the image as the example's pod would.

// pod is what a StatefulSet says of its pods. A member that is not here is one
// that this test does not know to be right.
type pod struct {
	AutomountServiceAccountToken, EnableServiceLinks *bool
	SecurityContext                                  struct {
		RunAsNonRoot                   bool
		RunAsUser, RunAsGroup, FSGroup int
		FSGroupChangePolicy            string
		SeccompProfile                 struct{ Type string }
	}
	Containers []struct {
		Name, Image string
		EnvFrom     []struct{ SecretRef struct{ Name string } }
		Ports       []struct {
			Name          string
			ContainerPort int
		}
		ReadinessProbe struct {
			HTTPGet       *struct{ Path, Port string }
			PeriodSeconds int
		}
		LivenessProbe struct{ TCPSocket *struct{ Port string } }
		Resources     struct {
			Requests struct{ CPU, Memory string }
			Limits   struct{ Memory string }
		}
		SecurityContext struct {
			AllowPrivilegeEscalation *bool
			ReadOnlyRootFilesystem   bool
			Capabilities             struct{ Drop []string }
		}
		VolumeMounts []struct{ Name, MountPath string }
	}
}

type labels map[string]string

// resources are a Service and a StatefulSet, whose members have different names.
type resources struct {
	APIVersion, Kind string
	Metadata         struct {
		Name   string
		Labels labels
	}
	Spec struct {
		Ports []struct {
			Name       string
			Port       int
			TargetPort string
		}
		Selector    json.RawMessage
		ServiceName string
		Replicas    int
		Template    struct {
			Metadata struct{ Labels labels }
			Spec     pod
		}
		VolumeClaimTemplates []struct {
			Metadata struct{ Name string }
			Spec     struct {
				AccessModes []string
				Resources   struct{ Requests struct{ Storage string } }
			}
		}
	}
}

// readResources reads the example strictly.
func readResources(t *testing.T) (service, set resources) {
	t.Helper()
	text, both := lockertest.Read(t, "examples/kubernetes/locker.yml"), []*resources{&service, &set}
	docs := strings.Split(text, "\n---\n")
	if len(docs) != len(both) {
		t.Fatalf("%d documents", len(docs))
	}
	for i, doc := range docs {
		var plain json.RawMessage
		unyaml(t, doc, &plain)
		strict := json.NewDecoder(bytes.NewReader(plain))
		strict.DisallowUnknownFields()
		if err := strict.Decode(both[i]); err != nil {
			t.Fatal(err)
		}
	}
	return service, set
}

// What refers to something in the example refers to what is there, and a full
// disk keeps clients away without a restart.
func TestKubernetes(t *testing.T) {
	need(t, "ruby")
	service, set := readResources(t)
	if service.Kind != "Service" || set.Kind != "StatefulSet" || set.APIVersion != "apps/v1" || set.Spec.ServiceName != service.Metadata.Name || set.Spec.Replicas != 1 {
		t.Errorf("%+v %+v", service, set)
	}
	var selected labels
	var matched struct{ MatchLabels labels }
	if json.Unmarshal(service.Spec.Selector, &selected) != nil || json.Unmarshal(set.Spec.Selector, &matched) != nil {
		t.Fatalf("selectors %s, %s", service.Spec.Selector, set.Spec.Selector)
	}
	all := []string{fmt.Sprint(selected), fmt.Sprint(matched.MatchLabels), fmt.Sprint(set.Spec.Template.Metadata.Labels)}
	if len(slices.Compact(all)) != 1 || len(selected) == 0 {
		t.Errorf("labels and selectors %q", all)
	}
	locker, claim := set.Spec.Template.Spec.Containers[0], set.Spec.VolumeClaimTemplates[0]
	port := locker.Ports[0].Name
	if service.Spec.Ports[0].TargetPort != port || service.Spec.Ports[0].Port != 8910 || locker.Ports[0].ContainerPort != 8910 {
		t.Errorf("ports %+v, %+v", service.Spec.Ports, locker.Ports)
	}
	if get, tcp := locker.ReadinessProbe.HTTPGet, locker.LivenessProbe.TCPSocket; get == nil || get.Path != "/health" || get.Port != port || tcp == nil || tcp.Port != port {
		t.Errorf("probes %+v %+v", get, tcp)
	}
	if len(locker.VolumeMounts) != 1 || locker.VolumeMounts[0].Name != claim.Metadata.Name || claim.Spec.AccessModes[0] != "ReadWriteOnce" {
		t.Errorf("volumes %+v, %+v", locker.VolumeMounts, claim)
	}
	released, _, _ := strings.Cut(strings.SplitN(lockertest.Read(t, "CHANGELOG.md"), "\n## ", 2)[1], ",")
	if want := "registry.example/locker:" + released; locker.Image != want {
		t.Errorf("the image is %s, want %s", locker.Image, want)
	}
}

// runPod starts the image under what the example says of its pod, with a volume
// that belongs to root and the pod's group, as a kubelet mounts it.
func runPod(t *testing.T, p pod) *container {
	t.Helper()
	about, locker := p.SecurityContext, p.Containers[0]
	if !about.RunAsNonRoot || about.RunAsUser == 0 || about.SeccompProfile.Type != "RuntimeDefault" || *locker.SecurityContext.AllowPrivilegeEscalation ||
		!locker.SecurityContext.ReadOnlyRootFilesystem || !slices.Equal(locker.SecurityContext.Capabilities.Drop, []string{"ALL"}) {
		t.Errorf("%+v, %+v", about, locker.SecurityContext)
	}
	disk := volume(t, "--opt=type=tmpfs", "--opt=device=tmpfs", fmt.Sprintf("--opt=o=size=64k,mode=2775,uid=0,gid=%d", about.FSGroup))
	id, err := docker(t, nil, slices.Concat([]string{"run", "--detach", "--publish=127.0.0.1::8910", "--env=AUTH_USER=test", "--env=AUTH_PASS=test"}, hardened, []string{
		fmt.Sprintf("--user=%d:%d", about.RunAsUser, about.RunAsGroup), fmt.Sprintf("--group-add=%d", about.FSGroup),
		"--volume=" + disk + ":" + locker.VolumeMounts[0].MountPath, "--memory=" + strings.ToLower(strings.TrimSuffix(locker.Resources.Limits.Memory, "i")),
		serverImage})...)
	if err != nil {
		t.Fatal(err)
	}
	c := &container{t: t, id: strings.TrimSpace(id)}
	t.Cleanup(c.remove)
	c.await()
	return c
}

// The pod takes locks, and on a full disk it is not ready, but alive.
func TestReleasedKubernetes(t *testing.T) {
	need(t, "ruby")
	loadServerImage(t)
	_, set := readResources(t)
	p := set.Spec.Template.Spec
	c := runPod(t, p)
	health := c.url + p.Containers[0].ReadinessProbe.HTTPGet.Path
	address := strings.TrimPrefix(c.url, "http://")
	c.url = strings.Replace(c.url, "://", "://test:test@", 1)
	c.want("PUT", "/lock/a", `{"key": "k"}`, http.StatusOK)
	c.copyIn("fill", 1<<20)
	c.want("PUT", "/lock/b", `{"key": "k"}`, http.StatusInsufficientStorage)
	if status, body := lockertest.Send(t.Context(), "GET", health, ""); status != http.StatusServiceUnavailable {
		t.Errorf("readiness on a full disk: %d %s", status, body)
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatalf("liveness on a full disk: %v", err)
	}
	conn.Close()
}
