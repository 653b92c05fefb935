// Out is Concourse's out of a locker-resource: it takes or releases a lock.
package main

import "github.com/cloudfoundry-community/locker/resource"

func main() { resource.Main(resource.Out) }
